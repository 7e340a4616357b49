//! What is kept of the schedules that are tried, on a bundled model.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_models::{Error, Kind, ModelFolder, Observer, Pipeline, ReuseSchedule, Sampler, Sampling};
use secateur_skip::{Learning, Loss, Scores, SuperNet, evenly, first_unit, kept, rules, select, ways};
use std::cell::{Cell, RefCell};
use std::path::Path;

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
    let sampling = Sampling { steps: 8, batch: 3, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let pipeline = Pipeline::open(folder).unwrap();
    let learning = Learning {
        prompts: ["1", "2", "3"].map(str::to_owned).into(),
        sampling,
        loss: Loss::Ssim,
        iterations: 1,
        keep: 0.5,
    };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for kind in [Kind::Block, Kind::Residual] {
        let whole = ReuseSchedule::whole(pipeline.folder(), &learning.sampling, kind).unwrap();
        let scores = Scores(whole.computed.iter().map(|row| row.iter().map(|_| random.random()).collect()).collect());
        let tried = |exchanges: usize, observer: &dyn Observer| {
            let rules = rules(&pipeline, &whole, &learning, observer).unwrap();
            select(&pipeline, rules, Some(&scores), &whole, &learning, exchanges, observer).unwrap()
        };
        let all = tried(16, &());
        assert!(!all.stopped);
        let names: Vec<String> = all.schedules.iter().map(ToString::to_string).collect();
        let [first, rest @ ..] = all.schedules.as_slice() else { panic!("nothing was tried") };
        assert!(first.exchanges > 0 && first.psnr > rest[0].psnr, "{kind}: {names:?}");
        assert!(rest.is_sorted_by(|a, b| a.psnr >= b.psnr) && rest.iter().all(|tried| tried.exchanges == 0));
        for name in ["learned, bisection", "learned, cascade", "calls evenly spread", "by the first block's change"] {
            assert_eq!(rest.iter().filter(|tried| tried.from == name).count(), 1, "{kind}: {name} in {names:?}");
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
        let some = tried(16, &Impatient { stage: RefCell::default(), left: Cell::new(5) });
        assert!(some.stopped && some.schedules[0].psnr > rest[0].psnr && some.schedules[0].psnr <= first.psnr);
    }
}

#[test]
fn plain_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 9, ..folder.sampling() };
    let structure = folder.structure(&sampling);
    let pipeline = Pipeline::open(folder).unwrap();
    let whole = ReuseSchedule::whole(pipeline.folder(), &sampling, Kind::Block).unwrap();
    let calls = |schedule: ReuseSchedule| {
        assert!(schedule.computed.iter().all(|row| row.iter().all(|computed| *computed == row[0])));
        schedule.computed.iter().enumerate().filter(|(_, row)| row[0]).map(|(call, _)| call).collect::<Vec<_>>()
    };
    assert_eq!(calls(evenly(&whole, &structure, 0.35).unwrap()), [0, 3, 6]);
    // The change is at the end, the last call's included.
    let changes = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0, 1.0];
    assert_eq!(calls(first_unit(&whole, &structure, 0.35, &changes).unwrap()), [0, 7, 8]);

    let prompts = ["1".to_owned()];
    let conditioning = pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
    let net = SuperNet::new(&pipeline, &sampling, &whole);
    let changes = net.run(&conditioning, 0..1).unwrap().changes(0).unwrap();
    assert_eq!(changes.len(), 8);
    assert!(changes.iter().all(|&change| change > 0.0 && change < 1.0), "{changes:?}");
}

/// A sampler whose first steps take several calls cannot make as few as would do.
#[test]
fn fewer_steps_where_there_are_none() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-unet");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 20, sampler: Sampler::Pndm, ..folder.sampling() };
    let pipeline = Pipeline::open(folder).unwrap();
    let whole = ReuseSchedule::whole(pipeline.folder(), &sampling, Kind::Block).unwrap();
    let learning = Learning { prompts: Vec::new(), sampling, loss: Loss::Ssim, iterations: 1, keep: 0.4 };
    let ways = ways(&pipeline, &[], &whole, &learning).unwrap();
    assert_eq!(ways.iter().map(|way| &*way.name).collect::<Vec<_>>(), ["random"]);
}
