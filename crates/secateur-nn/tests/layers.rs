//! Layers under their names: that each does what its op does with its parameters, who watches, and
//! gates.

use candle_core::{DType, Device, Tensor};
use secateur_nn::{
    Activation, Context, Conv2d, Embedding, Error, Gates, GroupNorm, LayerName, LayerNorm, Linear,
    Parameters, Passage, Probe, Result, RmsNorm, Scope,
};
use std::cell::RefCell;

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

fn layer<T>(
    parameters: &[(&str, &[f32], &[usize])],
    construct: impl FnOnce(&Scope<'_>) -> Result<T>,
) -> T {
    let named = parameters
        .iter()
        .map(|(name, values, shape)| (format!("layer.{name}"), tensor(values, shape)));
    Parameters::new("", named).build(|scope| construct(&scope.at("layer"))).unwrap()
}

fn close(what: &str, got: &Tensor, want: &[f64]) {
    let got: Vec<f64> = got.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-5, "{what}: {got} against {want}");
    }
}

#[test]
fn layers_use_their_parameters() {
    let none = Context::default();
    // [1, 2] by rows [3, 4] and [-5, 1], plus 0.5 and -1.
    let weight = ("weight", &[3.0, 4.0, -5.0, 1.0][..], &[2, 2][..]);
    let x = tensor(&[1.0, 2.0], &[1, 2]);
    let linear = layer(&[weight, ("bias", &[0.5, -1.0], &[2])], |scope| Linear::new(2, 2, scope));
    // Twice: the second time by what was packed.
    for _ in 0..2 {
        close("linear", &linear.forward(&x, &none).unwrap(), &[11.5, -4.0]);
    }
    close(
        "activated",
        &linear.forward_activated(&x, Activation::Relu, &none).unwrap(),
        &[11.5, 0.0],
    );
    let linear = layer(&[weight], |scope| Linear::without_bias(2, 2, scope));
    close("without bias", &linear.forward(&x, &none).unwrap(), &[11.0, -3.0]);

    // The sum of four neighbours, and what is beside the picture is 0.
    let taps = ("weight", &[1.0; 4][..], &[1, 1, 2, 2][..]);
    let picture = tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 2, 2]);
    let convolution =
        layer(&[taps, ("bias", &[0.5], &[1])], |scope| Conv2d::new((1, 1), 2, 1, (0, 1), scope));
    for _ in 0..2 {
        close(
            "convolution",
            &convolution.forward(&picture, &none).unwrap(),
            &[10.5, 6.5, 7.5, 4.5],
        );
    }
    let convolution = layer(&[taps], |scope| Conv2d::without_bias((1, 1), 2, 2, (1, 1), scope));
    close(
        "convolution without bias",
        &convolution.forward(&picture, &none).unwrap(),
        &[1.0, 2.0, 3.0, 4.0],
    );

    // Of mean 2 and deviation 1; of mean square 5; each plus 3 in the root.
    let affine = [("weight", &[2.0, 4.0][..], &[2][..]), ("bias", &[1.0, -1.0], &[2])];
    let x = tensor(&[1.0, 3.0], &[1, 2]);
    let norm = layer(&affine, |scope| LayerNorm::new(2, 3.0, scope));
    close("layer norm", &norm.forward(&x).unwrap(), &[1.0 - 2.0 / 2.0, -1.0 + 4.0 / 2.0]);
    let norm = layer(&affine[..1], |scope| RmsNorm::new(2, 3.0, scope));
    close("RMS norm", &norm.forward(&x).unwrap(), &[2.0 / 8f64.sqrt(), 12.0 / 8f64.sqrt()]);
    let norm = layer(&affine, |scope| GroupNorm::new(1, 2, 3.0, scope));
    let x = tensor(&[1.0, 3.0], &[1, 2, 1, 1]);
    close("group norm", &norm.forward(&x).unwrap(), &[0.0, 1.0]);
    close("group norm, SiLU", &norm.forward_silu(&x).unwrap(), &[0.0, 1.0 / (1.0 + (-1f64).exp())]);

    let embedding = layer(&[("weight", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2])], |scope| {
        Embedding::new(3, 2, scope)
    });
    let found = embedding.forward(&Tensor::new(&[[2u32, 0]], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(found.dims(), [1, 2, 2]);
    close("embedding", &found, &[5.0, 6.0, 1.0, 2.0]);
}

#[derive(Default)]
struct Watching(RefCell<Vec<(LayerName, Vec<usize>)>>);

impl Probe for Watching {
    fn linear_input(&self, layer: &LayerName, x: &Tensor, _: &Context<'_>) -> Result<()> {
        self.0.borrow_mut().push((layer.clone(), x.dims().to_vec()));
        Ok(())
    }

    fn convolution_input(&self, layer: &LayerName, x: &Tensor, _: &Context<'_>) -> Result<()> {
        self.0.borrow_mut().push((format!("convolution {layer}").into(), x.dims().to_vec()));
        Ok(())
    }
}

#[test]
fn inputs_of_linear_layers_are_watched() {
    let linear =
        layer(&[("weight", &[1.0; 6], &[3, 2])], |scope| Linear::without_bias(2, 3, scope));
    let watching = Watching::default();
    let context = Context { probe: Some(&watching), ..Context::default() };
    linear.forward(&tensor(&[1.0; 8], &[4, 2]), &context).unwrap();
    linear.forward_activated(&tensor(&[1.0; 2], &[1, 2]), Activation::Silu, &context).unwrap();
    let error = linear.forward(&tensor(&[1.0; 3], &[1, 3]), &context).unwrap_err().to_string();
    assert_eq!(error, "layer layer: an input of [1, 3], and 2 columns in its weight");
    assert_eq!(
        watching.0.into_inner(),
        [("layer".into(), vec![4, 2]), ("layer".into(), vec![1, 2])]
    );
}

#[test]
fn inputs_of_convolutions_are_watched() {
    let convolution = layer(&[("weight", &[1.0; 8], &[1, 2, 2, 2]), ("bias", &[0.0], &[1])], |s| {
        Conv2d::new((2, 1), 2, 1, (0, 1), s)
    });
    let x = tensor(&[1.0; 12], &[1, 2, 2, 3]);
    let watching = Watching::default();
    let context = Context { probe: Some(&watching), ..Context::default() };
    convolution.forward(&x, &context).unwrap();
    for (dims, words) in [(&[1, 3, 2, 2][..], "[1, 3, 2, 2]"), (&[3, 4], "[3, 4]")] {
        let error = convolution.forward(&tensor(&[1.0; 12], dims), &context).unwrap_err();
        let want = format!("layer layer: an input of {words}, and 2 channels in its weight");
        assert_eq!(error.to_string(), want);
    }
    assert_eq!(watching.0.into_inner(), [("convolution layer".into(), vec![1, 2, 2, 3])]);

    // A probe of linear layers alone does not see it; one that objects ends the forward.
    struct Linears;
    impl Probe for Linears {
        fn linear_input(&self, _: &LayerName, _: &Tensor, _: &Context<'_>) -> Result<()> {
            panic!("a convolution is no linear layer")
        }
    }
    struct Objecting;
    impl Probe for Objecting {
        fn linear_input(&self, _: &LayerName, _: &Tensor, _: &Context<'_>) -> Result<()> {
            Ok(())
        }

        fn convolution_input(&self, layer: &LayerName, _: &Tensor, _: &Context<'_>) -> Result<()> {
            Err(Error::Layer { layer: layer.clone(), problem: "objection".into() })
        }
    }
    let forward = |probe: &dyn Probe| {
        convolution.forward(&x, &Context { probe: Some(probe), ..Context::default() })
    };
    assert_eq!(forward(&Linears).unwrap().dims(), [1, 1, 2, 3]);
    assert_eq!(forward(&Objecting).unwrap_err().to_string(), "layer layer: objection");
}

/// Doubles what goes in and adds 1 to what comes out, or gives so many zeros in its place.
struct Gate(Option<usize>);

impl Gates for Gate {
    fn enter(&self, _: &str, inputs: &[Tensor]) -> Result<Passage> {
        let zeros = |count| (0..count).map(|_| tensor(&[0.0], &[1])).collect();
        let doubled = || inputs.iter().map(|x| Ok((x * 2.0)?)).collect::<Result<_>>();
        Ok(match self.0 {
            Some(count) => Passage::Instead(zeros(count)),
            None => Passage::Compute(doubled()?),
        })
    }

    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        assert_eq!((stretch, inputs.len()), ("block", 1));
        outputs.into_iter().map(|y| Ok((y + 1.0)?)).collect()
    }
}

#[test]
fn gates_stand_before_and_after() {
    let run = |gates: Option<&dyn Gates>| {
        let context = Context { gates, ..Context::default() };
        let listed = context
            .gated("block", vec![tensor(&[5.0], &[1])], |x| Ok::<_, Error>(vec![(&x[0] + 10.0)?]));
        let array = context
            .gated_array("block", [tensor(&[5.0], &[1])], |[x]| Ok::<_, Error>([(x + 10.0)?]));
        (listed.unwrap(), array)
    };
    for (gates, want) in
        [(None, 15.0), (Some(&Gate(None) as &dyn Gates), 21.0), (Some(&Gate(Some(1))), 0.0)]
    {
        let (listed, array) = run(gates);
        close("gated", &Tensor::cat(&listed, 0).unwrap(), &[want]);
        close("gated array", &array.unwrap()[0], &[want]);
    }
    let (listed, array) = run(Some(&Gate(Some(2))));
    assert_eq!(listed.len(), 2);
    assert_eq!(array.unwrap_err().to_string(), "layer block: a gate gave 2 tensors instead of 1");
}
