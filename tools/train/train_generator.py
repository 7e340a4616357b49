"""Trains a generator on the latents under a wall-clock budget; saves a diffusers pipeline."""

import contextlib
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)

import networks
from common import prepare, set_learning_rate, spent, training_parser
from emoji import caption, class_labels, class_names, rows_of

NO_CLASS = 1000


def half(module):
    """The module as it is saved."""
    return module.to("cpu", torch.float16)


def diffuse(x, noise, uniform, alphas):
    """DDPM's forward process: the steps of `uniform` in [0, 1) and the noisy latents there."""
    step = (uniform * 1000).long().clamp(0, 999)
    alpha = alphas[step][:, None, None, None]
    return step, alpha.sqrt() * x + (1 - alpha).sqrt() * noise


class Mmdit(torch.nn.Module):
    """SD3: rectified flow, joint attention, two CLIP text encoders, zeros in the place of T5."""

    def __init__(self, tok):
        super().__init__()
        self.core = networks.mmdit()
        self.text = networks.text_encoder(tok, 128, 4, "quick_gelu", 128)
        self.text_2 = networks.text_encoder(tok, 128, 4, "gelu", 128)

    def start_at_zero(self):
        """The layers that start at zero: every gate and the output."""
        for block in self.core.transformer_blocks:
            yield block.norm1.linear
            yield block.norm1_context.linear
        yield self.core.proj_out

    def prediction(self, core, x, noise, uniform, ids, labels):
        """The predicted and the true velocity; times follow the logit-normal density."""
        first = self.text(ids, output_hidden_states=True)
        second = self.text_2(ids, output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        sigma = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)))
        spread = sigma[:, None, None, None]
        velocity = core(
            hidden_states=(1 - spread) * x + spread * noise,
            encoder_hidden_states=torch.cat([context, torch.zeros_like(context)], 1),
            pooled_projections=torch.cat([first.text_embeds, second.text_embeds], -1),
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
        return velocity, noise - x

    def save(self, folder, vae, tok):
        """Writes the pipeline, with T5 listed as absent."""
        StableDiffusion3Pipeline(
            transformer=half(self.core),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=half(vae),
            text_encoder=half(self.text),
            tokenizer=tok,
            text_encoder_2=half(self.text_2),
            tokenizer_2=tok,
            text_encoder_3=None,
            tokenizer_3=None,
        ).save_pretrained(folder, safe_serialization=True)
        path = Path(folder) / "model_index.json"
        index = json.loads(path.read_text())
        index["text_encoder_3"] = index["tokenizer_3"] = [None, None]
        path.write_text(json.dumps(index, indent=2))


class Unet(torch.nn.Module):
    """SD1.x: predicts the noise, cross-attention to one CLIP text encoder."""

    def __init__(self, tok):
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.register_buffer("alphas", torch.cumprod(1 - betas, 0))
        self.core = networks.unet()
        self.text = networks.text_encoder(tok, 192, 6, "quick_gelu")

    def start_at_zero(self):
        """No layer starts at zero."""
        return ()

    def prediction(self, core, x, noise, uniform, ids, labels):
        """The predicted and the true noise."""
        step, noisy = diffuse(x, noise, uniform, self.alphas)
        context = self.text(ids).last_hidden_state
        return core(noisy, step, context, return_dict=False)[0], noise

    def save(self, folder, vae, tok):
        """Writes the pipeline."""
        vae.register_to_config(shift_factor=None)
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        StableDiffusionPipeline(
            vae=half(vae),
            text_encoder=half(self.text),
            tokenizer=tok,
            unet=half(self.core),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder, safe_serialization=True)


class Dit(torch.nn.Module):
    """DiT: predicts the noise, given a class."""

    def __init__(self, tok):
        super().__init__()
        betas = torch.linspace(1e-4, 2e-2, 1000)
        self.register_buffer("alphas", torch.cumprod(1 - betas, 0))
        self.core = networks.dit()

    def start_at_zero(self):
        """The layers that start at zero: every gate and the output."""
        for block in self.core.transformer_blocks:
            yield block.norm1.linear
        yield self.core.proj_out_2

    def prediction(self, core, x, noise, uniform, ids, labels):
        """The predicted and the true noise."""
        step, noisy = diffuse(x, noise, uniform, self.alphas)
        return core(noisy, step, class_labels=labels, return_dict=False)[0], noise

    def save(self, folder, vae, tok):
        """Writes the pipeline with the names of the classes."""
        vae.register_to_config(shift_factor=None)
        scheduler = DDIMScheduler(
            beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", clip_sample=False
        )
        DiTPipeline(
            transformer=half(self.core),
            vae=half(vae),
            scheduler=scheduler,
            id2label=dict(enumerate(class_names())),
        ).save_pretrained(folder, safe_serialization=True)


KINDS = {"mmdit": Mmdit, "unet": Unet, "dit": Dit}


class Examples:
    """The latents with their texts and classes, on the device."""

    def __init__(self, folder, tok, scaling, device):
        rows = rows_of()
        in_train = torch.tensor([row["split"] == "train" for row in rows])
        self.scaling = scaling
        self.moments = torch.load(f"{folder}/latents.pt", map_location=device)
        self.full = networks.token_ids(tok, [caption(row) for row in rows]).to(device)
        self.bare = networks.token_ids(tok, [caption(row, style=False) for row in rows]).to(device)
        self.empty = networks.token_ids(tok, [""]).to(device)
        self.labels = torch.tensor(class_labels(rows), device=device)
        self.train = in_train.nonzero()[:, 0].to(device)
        self.held_out = (~in_train).nonzero()[:, 0].to(device)

    def latents(self, index, view):
        """Scaled samples of the latents of some rows, each in its view."""
        mean, log_variance = self.moments[view, index].float().chunk(2, 1)
        std = (0.5 * log_variance.clamp(-30, 20)).exp()
        return (mean + std * torch.randn_like(mean)) * self.scaling

    def conditions(self, index):
        """Texts (10 % empty, 10 % without style) and labels (10 % without class), for guidance."""
        drop = torch.rand(len(index), 1, device=index.device)
        styled = torch.where(drop < 0.2, self.bare[index], self.full[index])
        ids = torch.where(drop < 0.1, self.empty, styled)
        labels = self.labels[index]
        return ids, torch.where(drop[:, 0] < 0.1, torch.full_like(labels, NO_CLASS), labels)


def initialise(net):
    """Gates and outputs at zero, small embeddings."""
    for layer in net.start_at_zero():
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for module in net.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings <= 2048:
            torch.nn.init.normal_(module.weight, std=0.02)


def train_loss(net, core, examples, batch, device):
    """The loss of a random batch."""
    index = examples.train[torch.randint(len(examples.train), (batch,), device=device)]
    ids, labels = examples.conditions(index)
    with torch.autocast(device, torch.bfloat16):
        uniform = torch.rand(batch, device=device)
        noise = torch.randn(batch, 8, 16, 16, device=device)
        view = torch.randint(len(examples.moments), (batch,), device=device)
        x = examples.latents(index, view)
        output, target = net.prediction(core, x, noise, uniform, ids, labels)
        return (output.float() - target).pow(2).mean(dim=(1, 2, 3)).mean()


@torch.no_grad()
def held_out_loss(net, core, examples, batch, device):
    """The loss of the first held-out rows, at evenly spread times and from fixed noise."""
    generator = torch.Generator(device).manual_seed(1)
    index = examples.held_out[:batch]
    uniform = (torch.arange(len(index), device=device) + 0.5) / len(index)
    ids, labels = examples.full[index], examples.labels[index]
    losses = []
    with torch.autocast(device, torch.bfloat16):
        for _ in range(4):
            noise = torch.randn((len(index), 8, 16, 16), device=device, generator=generator)
            x = examples.latents(index, view=torch.zeros_like(index))
            output, target = net.prediction(core, x, noise, uniform, ids, labels)
            losses.append((output.float() - target).pow(2).mean(dim=(1, 2, 3)).mean())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def load(parameters, values):
    """Copies values into parameters."""
    for parameter, value in zip(parameters, values):
        parameter.copy_(value)


@contextlib.contextmanager
def loaded(parameters, values):
    """Has the parameters hold other values for a while."""
    kept = [parameter.detach().clone() for parameter in parameters]
    load(parameters, values)
    yield
    load(parameters, kept)


def train(net, examples, arguments):
    """Trains for the given minutes and leaves averaged weights in the net.

    They are the last ones, or the best by held-out loss if those are better by 1.5 %.
    """
    device = arguments.device
    core = torch.compile(net.core) if device == "cuda" else net.core
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.03, fused=device == "cuda"
    )
    average = [parameter.detach().clone() for parameter in parameters]
    best_loss, best, best_step = float("inf"), average, 0
    step = 0
    for share in spent(arguments.minutes):
        warm_up = min(1, (step + 1) / 300)
        decay = (1 - share) ** 0.5 if share < 0.999 else 0
        set_learning_rate(optimizer, arguments.lr * warm_up * decay)
        loss = train_loss(net, core, examples, arguments.batch, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        values = [parameter.detach() for parameter in parameters]
        torch._foreach_lerp_(average, values, 0.1 if step < 500 else 0.001)
        if step % 500 == 0 or step == 20:
            with loaded(parameters, average):
                held_out = held_out_loss(net, core, examples, arguments.batch, device)
            if held_out < best_loss:
                best_loss, best_step = held_out, step
                best = [value.clone() for value in average]
            print(f"{step} loss {loss.item():.4f} averaged, held-out {held_out:.4f}", flush=True)
    load(parameters, average)
    held_out = held_out_loss(net, core, examples, arguments.batch, device)
    print(f"{step} steps, held-out {held_out:.4f}; best {best_loss:.4f} at {best_step}", flush=True)
    if best_loss < held_out * 0.985:
        load(parameters, best)
        print(f"kept the weights of step {best_step}", flush=True)


def main():
    parser = training_parser(__doc__, minutes=18, batch=512)
    parser.add_argument("--kind", choices=KINDS, required=True, help="which generator")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    arguments = parser.parse_args()
    prepare()
    tok = networks.tokenizer()
    vae = AutoencoderKL.from_pretrained(f"{arguments.out}/vae").to(arguments.device).eval()
    examples = Examples(arguments.out, tok, vae.config.scaling_factor, arguments.device)
    net = KINDS[arguments.kind](tok).to(arguments.device)
    initialise(net)
    train(net, examples, arguments)
    net.eval().save(f"{arguments.out}/{arguments.kind}", vae, tok)
    print(f"{arguments.kind} saved", flush=True)


if __name__ == "__main__":
    main()
