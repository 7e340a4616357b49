//! Two sets of pictures of a bundled model, scored by the bundled CLIP.

use candle_core::Tensor;
use secateur_eval::{Comparison, Samples, Summary, psnr_capped, split, ssim};
use secateur_models::{ClipModel, ModelFolder, Pipeline, Sampling};
use std::path::Path;

#[test]
fn pictures_are_scored_against_their_texts_and_all_others() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = ModelFolder::open(&models.join("emoji-unet"), None).unwrap();
    let clip = ClipModel::open(&models.join("emoji-clip"), folder.placement()).unwrap();
    let sampling = Sampling { steps: 7, guidance: 2.5, batch: 2, ..folder.sampling() };
    let pipeline = Pipeline::open(folder).unwrap();
    // The first text comes twice: a tie is no mistake.
    let prompts = ["red apple", "cat face", "red apple"].map(str::to_owned);
    let noise = pipeline.noise(0..3, &sampling).unwrap();
    let other = (&noise * 1.5).unwrap();
    let samples = |name: &str, latents: &Tensor, clip: Option<&ClipModel>| {
        let batches = [latents.narrow(0, 0, 2).unwrap(), latents.narrow(0, 2, 1).unwrap()];
        Samples::of(&pipeline, name, &prompts, &sampling, &batches, clip).unwrap()
    };
    let compare = |clip: [Option<&ClipModel>; 2]| -> Comparison {
        let (reference, candidate) =
            (samples("dense", &noise, clip[0]), samples("pruned", &other, clip[1]));
        assert_eq!(reference.pictures().len(), 3);
        let (comparison, pairs) = reference.compare(&candidate).unwrap();
        assert!(pairs.iter().map(|pair| &pair.prompt).eq(&prompts));
        comparison
    };
    let comparison = compare([Some(&clip), Some(&clip)]);
    assert_eq!((comparison.reference.as_str(), comparison.candidate.as_str()), ("dense", "pruned"));
    assert_eq!((comparison.steps, comparison.guidance), (7, 2.5));
    let pictures = |latents: &Tensor| pipeline.pictures(latents).unwrap();
    let texts = clip.embed_texts(&prompts).unwrap();
    let cosines = |latents: &Tensor| {
        let pictures = clip.embed_pictures(&pictures(latents)).unwrap();
        texts.matmul(&pictures.t().unwrap()).unwrap().to_vec2::<f32>().unwrap()
    };
    let own = |cosines: &[Vec<f32>]| (0..3).map(|i| f64::from(cosines[i][i])).collect::<Vec<_>>();
    let top1 = |cosines: &[Vec<f32>]| {
        let right = (0..3).filter(|&i| cosines.iter().all(|text| text[i] <= cosines[i][i]));
        right.count() as f64 / 3.0
    };
    let text_image = comparison.text_image.as_ref().unwrap();
    assert_eq!((text_image.model.as_str(), text_image.choices), (clip.name(), 3));
    for (latents, score, share, of_rows) in [
        (
            &noise,
            &text_image.score_reference,
            text_image.top1_reference,
            [0, 1, 2].map(|i| comparison.prompts[i].score_reference),
        ),
        (
            &other,
            &text_image.score_candidate,
            text_image.top1_candidate,
            [0, 1, 2].map(|i| comparison.prompts[i].score_candidate),
        ),
    ] {
        let cosines = cosines(latents);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
        let want = own(&cosines);
        assert!(
            of_rows.iter().zip(&want).all(|(row, want)| close(row.unwrap(), *want)),
            "{of_rows:?}, {want:?}"
        );
        assert!(close(score.mean, Summary::of(&want).unwrap().mean), "{score:?}");
        assert!(close(share, top1(&cosines)), "{share}");
    }
    let [reference, candidate] = [&noise, &other].map(|latents| split(&pictures(latents)).unwrap());
    for (i, row) in comparison.prompts.iter().enumerate() {
        // Rounded otherwise in another batch.
        assert!(
            (row.psnr - psnr_capped(&reference[i], &candidate[i]).unwrap()).abs() < 1e-3,
            "{row:?}"
        );
        assert!((row.ssim - ssim(&reference[i], &candidate[i]).unwrap()).abs() < 1e-4, "{row:?}");
        assert!((row.latent_error - 0.5).abs() < 1e-6, "{}", row.latent_error);
    }
    // Scores of one of them alone say nothing of the difference.
    for clip in [[Some(&clip), None], [None, Some(&clip)], [None, None]] {
        let comparison = compare(clip);
        assert!(comparison.text_image.is_none());
        assert_eq!(comparison.prompts[0].score_reference.is_some(), clip[0].is_some());
        assert_eq!(comparison.prompts[0].score_candidate.is_some(), clip[1].is_some());
    }
}
