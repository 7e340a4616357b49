//! What is kept of the schedules that are tried, on a bundled model.

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_eval::{psnr_capped, split};
use secateur_models::{
    Edits, Error, ModelFolder, Observer, Pipeline, ReuseSchedule, Sampler, Sampling, UnitKind,
};
use secateur_skip::{
    Learning, Loss, Progress, Scores, Search, Selected, Selection, SuperNet, evenly, first_unit,
    kept, ways,
};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

/// Interrupts after some schedules were exchanged.
struct Impatient {
    stage: RefCell<String>,
    left: Cell<usize>,
}

impl Observer for Impatient {
    fn begin(&self, stage: &str, _: usize, _: &str) {
        stage.clone_into(&mut self.stage.borrow_mut());
    }

    fn advance(&self, amount: usize) -> Result<(), Error> {
        if *self.stage.borrow() != "exchange" {
            return Ok(());
        }
        if self.left.get() == 0 {
            return Err(Error::Interrupted);
        }
        self.left.set(self.left.get() - amount);
        Ok(())
    }
}

#[test]
fn the_closest_is_kept_and_keeps_to_the_share() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 6, batch: 2, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let pipeline = Pipeline::open(folder).unwrap();
    let learning = Learning {
        prompts: ["1", "2"].map(str::to_owned).into(),
        sampling,
        loss: Loss::Ssim,
        iterations: 1,
        keep: 0.5,
    };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for kind in [UnitKind::Block, UnitKind::Residual] {
        let whole = pipeline.folder().whole_reuse(&learning.sampling, kind).unwrap();
        let scores = Scores(
            whole
                .computed
                .iter()
                .map(|row| row.iter().map(|_| random.random()).collect())
                .collect(),
        );
        let gone_on = |exchanges: usize, progress: Option<&Progress>, observer: &dyn Observer| {
            let search = Search::new(&pipeline, &whole, &learning, progress, observer)?;
            search.select(Some(&scores), exchanges)
        };
        let tried =
            |exchanges: usize, observer: &dyn Observer| gone_on(exchanges, None, observer).unwrap();
        let all = tried(16, &());
        assert!(!all.stopped);
        let names: Vec<String> = all.schedules.iter().map(ToString::to_string).collect();
        let [first, rest @ ..] = all.schedules.as_slice() else { panic!("nothing was tried") };
        assert!(first.exchanges > 0 && first.psnr > rest[0].psnr, "{kind}: {names:?}");
        assert!(
            rest.is_sorted_by(|a, b| a.psnr >= b.psnr)
                && rest.iter().all(|tried| tried.exchanges == 0)
        );
        for name in [
            "learned, bisection",
            "learned, cascade",
            "calls evenly spread",
            "by the first block's change",
        ] {
            assert_eq!(
                rest.iter().filter(|tried| tried.from == name).count(),
                1,
                "{kind}: {name} in {names:?}"
            );
        }
        for tried in &all.schedules {
            let schedule = &tried.schedule;
            assert!(kept(schedule, &structure).unwrap() <= learning.keep, "{kind}: {tried}");
            assert!(schedule.computed[0].iter().all(|computed| *computed), "{kind}: {tried}");
            assert_eq!(
                schedule.clone().live(&structure).unwrap(),
                *schedule,
                "{kind}: {tried} computes what nobody reads"
            );
        }
        let again = tried(16, &());
        assert_eq!(first.schedule, again.schedules[0].schedule);

        // None, and as many as there was time for.
        let none = tried(0, &());
        assert_eq!(
            none.schedules.iter().map(|tried| tried.psnr).collect::<Vec<_>>(),
            rest.iter().map(|tried| tried.psnr).collect::<Vec<_>>()
        );
        let temporary = tempfile::tempdir().unwrap();
        let progress = Progress { folder: temporary.path().to_owned(), request: "this".into() };
        let impatient = Impatient { stage: RefCell::default(), left: Cell::new(5) };
        let some = gone_on(16, Some(&progress), &impatient).unwrap();
        assert!(
            some.stopped
                && some.schedules[0].psnr > rest[0].psnr
                && some.schedules[0].psnr <= first.psnr
        );
        // Once more, with what was tried, whatever came of it.
        let resumed = gone_on(16, Some(&progress), &()).unwrap();
        assert_eq!(resumed.schedules[0].schedule, first.schedule);
        let at_once = Impatient { stage: RefCell::default(), left: Cell::new(0) };
        let again = gone_on(16, Some(&progress), &at_once).unwrap();
        assert_eq!(again.schedules[0].psnr.to_bits(), first.psnr.to_bits());
        let other = Progress { request: "that".into(), ..progress };
        assert!(gone_on(16, Some(&other), &()).unwrap_err().to_string().contains("of another run"));
    }
}

#[test]
fn plain_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 9, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let pipeline = Pipeline::open(folder).unwrap();
    let whole = pipeline.folder().whole_reuse(&sampling, UnitKind::Block).unwrap();
    let calls = |schedule: ReuseSchedule| {
        assert!(schedule.computed.iter().all(|row| row.iter().all(|computed| *computed == row[0])));
        schedule
            .computed
            .iter()
            .enumerate()
            .filter(|(_, row)| row[0])
            .map(|(call, _)| call)
            .collect::<Vec<_>>()
    };
    assert_eq!(calls(evenly(&whole, &structure, 0.35, &[]).unwrap()), [0, 3, 6]);
    // The change is at the end, the last call's included.
    let changes = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0, 1.0];
    let since = |last: usize, call: usize| changes[last..call].iter().sum();
    assert_eq!(calls(first_unit(&whole, &structure, 0.35, &[], since).unwrap()), [0, 7, 8]);
    // With the first block of every call there is less for the others.
    let residual = pipeline.folder().whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let behind = first_unit(&residual, &structure, 0.35, &[0], since).unwrap();
    assert!(behind.computed.iter().all(|row| row[0]) && kept(&behind, &structure).unwrap() <= 0.35);
    let whole_calls =
        behind.computed.iter().enumerate().filter(|(_, row)| row.iter().all(|&computed| computed));
    assert_eq!(whole_calls.map(|(call, _)| call).collect::<Vec<_>>(), [0, 7]);
    assert_eq!(
        behind.computed.iter().flatten().filter(|&&computed| computed).count(),
        7 + 2 * residual.units.len()
    );

    let prompts = ["1".to_owned()];
    let conditioning = pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
    let net = SuperNet::new(&pipeline, &sampling, &whole);
    let changes = net.run(&conditioning, 0..1, || Ok(())).unwrap().changes(0).unwrap();
    assert_eq!(changes.len(), 9);
    for (call, row) in changes.iter().enumerate() {
        assert!(row.len() == 9 && row[..=call].iter().all(|&change| change == 0.0), "{row:?}");
        assert!(row[call + 1..].iter().all(|&change| change > 0.0 && change < 2.0), "{row:?}");
    }
    // Not farther than by way of the calls between.
    assert!(
        changes[0][8]
            <= 1.01
                * (0..8)
                    .map(|call| changes[call][call + 1] * (1.0 + changes[0][call]))
                    .sum::<f64>()
    );
}

/// All of the calls at which what the first block adds has changed, and of the others that block
/// alone.
#[test]
fn first_block_caching_watches_and_computes_the_first_block() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 9, batch: 1, ..folder.sampling() };
    let mut pipeline = Pipeline::open(folder).unwrap();
    // The second adds nothing, whose changes would tell nothing.
    let mut edits = Edits::default();
    for parameter in
        ["attn1.to_out.0.weight", "attn1.to_out.0.bias", "ff.net.2.weight", "ff.net.2.bias"]
    {
        let name = format!("transformer_blocks.1.{parameter}");
        let zeros = pipeline.parameter(&name).unwrap().unwrap().zeros_like().unwrap();
        edits.weights.insert(name, zeros.into());
    }
    pipeline.apply(&edits).unwrap();
    let whole = pipeline.folder().whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let prompts = vec!["1".to_owned()];
    let conditioning = pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
    let net = SuperNet::new(&pipeline, &sampling, &whole);
    let changes = net.run(&conditioning, 0..1, || Ok(())).unwrap().changes(0).unwrap();
    let learning = Learning {
        prompts,
        sampling: sampling.clone(),
        loss: Loss::Ssim,
        iterations: 1,
        keep: 0.5,
    };
    let ways = ways(&pipeline, &[], &whole, &learning, &()).unwrap();
    let cache = ways.iter().find(|way| way.name == "first-block cache").unwrap();
    let schedule = cache.sampling.reuse.as_ref().unwrap();
    let (mut last, mut least, mut most) = (0, f64::INFINITY, 0f64);
    for (call, row) in schedule.computed.iter().enumerate() {
        assert!(
            row[0] && row[1..].iter().all(|computed| *computed == row[1]),
            "call {call}: {row:?}"
        );
        if call == 0 {
            continue;
        }
        let change = changes[last][call];
        if row[1] {
            (last, least) = (call, least.min(change));
        } else {
            most = most.max(change);
        }
    }
    assert!(cache.kept <= 0.5 && last > 0 && most < least, "{most} was left, {least} computed");
}

/// A sampler whose first steps take several calls cannot make as few as would do.
#[test]
fn fewer_steps_where_there_are_none() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-unet");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 20, sampler: Sampler::Pndm, ..folder.sampling() };
    let pipeline = Pipeline::open(folder).unwrap();
    let whole = pipeline.folder().whole_reuse(&sampling, UnitKind::Block).unwrap();
    let mut learning =
        Learning { prompts: Vec::new(), sampling, loss: Loss::Ssim, iterations: 1, keep: 0.4 };
    let names = |learning: &Learning| {
        let ways = ways(&pipeline, &[], &whole, learning, &()).unwrap();
        ways.into_iter().map(|way| way.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&learning), ["DeepCache", "DeepCache, order 1", "random"]);
    // Nor can what a branch and what is outside all branches cost.
    learning.keep = 0.1;
    assert_eq!(names(&learning), ["random"]);
}

/// As much as there is room for: of scores that are all different all but one more unit, of equal
/// ones all or nothing by a threshold, and one by one in the released code's way.
#[test]
fn scores_to_schedules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 10, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let whole = folder.whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let most = structure
        .units_of(UnitKind::Residual)
        .unwrap()
        .iter()
        .map(|unit| structure.unit_macs(unit))
        .max()
        .unwrap();
    let one = most as f64 / (structure.macs() * whole.computed.len() as u64) as f64;
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let different = Scores(
        whole.computed.iter().map(|row| row.iter().map(|_| random.random()).collect()).collect(),
    );
    let equal = Scores(vec![vec![0.5; whole.units.len()]; whole.computed.len()]);
    for wanted in [0.2, 0.5, 0.83] {
        let share = |scores: &Scores, how: Selection| {
            let schedule = scores.select(how, &whole, &structure, wanted).unwrap();
            assert!(schedule.computed[0].iter().all(|&computed| computed));
            kept(&schedule, &structure).unwrap()
        };
        for scores in [&different, &equal] {
            let cascade = share(scores, Selection::Cascade);
            assert!(cascade <= wanted && cascade > wanted - 1.001 * one, "{wanted}: {cascade}");
        }
        let bisection = share(&different, Selection::Bisection);
        assert!(bisection <= wanted && bisection > wanted - 1.001 * one, "{wanted}: {bisection}");
        let first_alone =
            kept(&different.at(2.0, &whole, &structure).unwrap(), &structure).unwrap();
        assert!((share(&equal, Selection::Bisection) - first_alone).abs() < 1e-12);
    }
}

/// The first call is always computed, though that is more than is wanted.
#[test]
fn less_than_the_first_call_cannot_be_had() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 3, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let whole = folder.whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let scores = Scores(vec![vec![0.5; whole.units.len()]; 3]);
    let schedule = scores.select(Selection::Bisection, &whole, &structure, 0.01).unwrap();
    let first = |row: &Vec<bool>| row.iter().all(|&computed| computed);
    let none = |row: &Vec<bool>| row.iter().all(|&computed| !computed);
    assert!(
        first(&schedule.computed[0]) && schedule.computed[1..].iter().all(none),
        "{:?}",
        schedule.computed
    );
}

#[test]
fn rules_are_measured_by_their_pictures_and_told_in_short() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 4, batch: 2, ..folder.sampling() };
    let pipeline = Pipeline::open(folder).unwrap();
    let whole = pipeline.folder().whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let prompts = ["1", "2", "3"].map(str::to_owned).to_vec();
    let learning = Learning { prompts, sampling, loss: Loss::Ssim, iterations: 1, keep: 0.6 };
    let search = Search::new(&pipeline, &whole, &learning, None, &()).unwrap();
    let draw = |reuse: Option<ReuseSchedule>| {
        let sampling = Sampling { reuse: reuse.map(Arc::new), ..learning.sampling.clone() };
        let batches = sampling.batches(3);
        let draw =
            |images| pipeline.sample(&learning.prompts, images, &sampling, None, &()).unwrap();
        let latents = Tensor::cat(&batches.map(draw).collect::<Vec<_>>(), 0).unwrap();
        split(&pipeline.pictures(&latents).unwrap()).unwrap()
    };
    let wanted = draw(None);
    assert_eq!(search.rules().len(), 2);
    for rule in search.rules() {
        let found = draw(Some(rule.schedule.clone()));
        let psnr =
            wanted.iter().zip(&found).map(|(a, b)| psnr_capped(a, b).unwrap()).sum::<f64>() / 3.0;
        assert!((rule.psnr - psnr).abs() < 0.01, "{rule}: {}, {psnr}", rule.psnr);
    }
    for (order, exchanges, told) in [
        (0, 0, "a rule"),
        (1, 0, "a rule, order 1"),
        (0, 1, "a rule, 1 exchange"),
        (2, 3, "a rule, order 2, 3 exchanges"),
    ] {
        let schedule = ReuseSchedule { order, ..whole.clone() };
        let selected = Selected { from: "a rule".into(), exchanges, psnr: 30.0, schedule };
        assert_eq!(selected.to_string(), told);
    }
}
