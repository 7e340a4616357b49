//! The search for the best schedule, by the pictures that schedules give.

use crate::error::{Error, Result};
use crate::progress::{INTERVAL, Progress, TRIED};
use crate::rules::{EVENLY, FIRST_UNIT, changes, evenly, first_unit};
use crate::scores::{Scores, Selection};
use crate::settings::Learning;
use candle_core::Tensor;
use secateur_eval::{Picture, psnr_capped, split};
use secateur_models::files::digest;
use secateur_models::{
    Conditioning, Denoising, Error as ModelError, Observer, Pipeline, ReuseSchedule, Sampling,
};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A schedule that was tried, with its quality.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The name of the rule or selection that it comes from.
    pub from: String,
    /// Number of exchanges that improved it.
    pub exchanges: usize,
    /// Mean PSNR in dB of its pictures against those of the whole run, on some of the pictures that
    /// were learned from.
    pub psnr: f64,
    /// The schedule.
    pub schedule: ReuseSchedule,
}

/// The result of a search: all schedules that were tried.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The closest schedule first. Then each schedule before exchanges, in its best order, the
    /// closest first.
    pub schedules: Vec<Selected>,
    /// Whether it was stopped before all exchanges were tried.
    pub stopped: bool,
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, exchanges, schedule, .. } = self;
        f.write_str(from)?;
        if schedule.order > 0 {
            write!(f, ", order {}", schedule.order)?;
        }
        match exchanges {
            0 => Ok(()),
            1 => write!(f, ", 1 exchange"),
            _ => write!(f, ", {exchanges} exchanges"),
        }
    }
}

/// The most pictures on which schedules are compared.
const JUDGED: usize = 8;

/// Number of orders of the forecasts that are tried, from 0 on.
const ORDERS: usize = 3;

/// The highest order of the forecasts during learning. Parabolas through calls that are not evenly
/// spread oscillate, and learning does not settle.
const LEARNED_ORDER: usize = 1;

/// The search for the schedule whose pictures are closest to those of the whole run.
///
/// Closeness is the mean PSNR. Its logarithm weighs all pictures alike, whereas a mean of errors is
/// dominated by the worst few.
pub struct Search<'a> {
    whole: &'a ReuseSchedule,
    learning: &'a Learning,
    judge: Judge<'a>,
    rules: Vec<Selected>,
}

impl<'a> Search<'a> {
    /// Tries plain rules, each in all orders of [`ReuseSchedule::order`]. `whole` computes
    /// everything. Schedules that a stopped run tried are taken from `progress`.
    ///
    /// # Errors
    /// If the model fails, or the observer interrupts.
    pub fn new(
        pipeline: &'a Pipeline,
        whole: &'a ReuseSchedule,
        learning: &'a Learning,
        progress: Option<&'a Progress>,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        let tries = Tries::new(progress, observer)?;
        let structure = pipeline.structure(&learning.sampling);
        observer.begin("plain rules", 2 * ORDERS, "schedules");
        let changes = changes(pipeline, whole, learning, observer)?;
        let accumulated =
            |last: usize, call: usize| (last..call).map(|call| changes[call][call + 1]).sum();
        let schedules = vec![
            (EVENLY.to_owned(), evenly(whole, &structure, learning.keep, &[])?),
            (
                FIRST_UNIT.to_owned(),
                first_unit(whole, &structure, learning.keep, &[], accumulated)?,
            ),
        ];
        let judge = Judge::new(pipeline, whole, learning, tries, observer)?;
        let rules = judge.in_best_orders(schedules);
        judge.tries.save()?;
        Ok(Self { whole, learning, rules: rules?, judge })
    }

    /// Returns the rules in their best orders, the closest first.
    #[must_use]
    pub fn rules(&self) -> &[Selected] {
        &self.rules
    }

    /// Returns the schedule to learn from: everything is computed, and forecasts have the order of
    /// the closest rule, but at most 1.
    #[must_use]
    pub fn to_learn(&self) -> ReuseSchedule {
        let order =
            self.rules.first().map_or(0, |closest| closest.schedule.order.min(LEARNED_ORDER));
        ReuseSchedule { order, ..self.whole.clone() }
    }

    /// Selects by `scores`, if any, in all ways, each in all orders, and compares the schedules
    /// with the rules. Then exchanges what is computed at successive calls if that makes pictures
    /// closer, first in the closest schedule, and then in the next ones until `exchanges` were
    /// tried.
    ///
    /// If the observer interrupts, returns the closest schedule so far.
    ///
    /// # Errors
    /// If the model fails.
    pub fn select(&self, scores: Option<&Scores>, exchanges: usize) -> Result<Tried> {
        let learned = self.learned(scores);
        self.judge.tries.save()?;
        let mut tried = match learned {
            Err(Error::Model(ModelError::Interrupted)) => {
                return Ok(Tried { schedules: self.rules.clone(), stopped: true });
            }
            learned => learned?,
        };
        tried.extend_from_slice(&self.rules);
        tried.sort_by(|a, b| b.psnr.total_cmp(&a.psnr));

        self.judge.observer.begin("exchange", exchanges, "schedules");
        let mut exchange = Exchange { judge: &self.judge, left: exchanges, stopped: false };
        let mut best: Option<Selected> = None;
        for (index, start) in tried.iter().enumerate() {
            // Two ways to select may come to the same.
            if tried[..index].iter().any(|earlier| earlier.schedule == start.schedule) {
                continue;
            }
            let exchanged = exchange.run(start)?;
            if best.as_ref().is_none_or(|best| exchanged.psnr > best.psnr) {
                best = Some(exchanged);
            }
        }
        self.judge.tries.save()?;
        let schedules = best.filter(|best| best.exchanges > 0).into_iter().chain(tried).collect();
        Ok(Tried { schedules, stopped: exchange.stopped })
    }

    /// Selects by scores in all ways, each in its best order.
    fn learned(&self, scores: Option<&Scores>) -> Result<Vec<Selected>> {
        let Some(scores) = scores else { return Ok(Vec::new()) };
        let structure = self.judge.pipeline.structure(&self.learning.sampling);
        let ways = [Selection::Bisection, Selection::Cascade];
        self.judge.observer.begin("select", ways.len() * ORDERS, "schedules");
        let learned = |how: Selection| {
            Ok((
                format!("learned, {how}"),
                scores.select(how, self.whole, &structure, self.learning.keep)?,
            ))
        };
        self.judge.in_best_orders(ways.into_iter().map(learned).collect::<Result<_>>()?)
    }
}

/// The exchanges of a search.
struct Exchange<'a> {
    judge: &'a Judge<'a>,
    /// Number of schedules that may still be tried.
    left: usize,
    stopped: bool,
}

impl Exchange<'_> {
    /// Exchanges what is computed at a call and at the next if that makes pictures closer, until no
    /// exchange does or no tries are left.
    fn run(&mut self, start: &Selected) -> Result<Selected> {
        let mut best = start.clone();
        // At the first call all is computed.
        let pairs = best.schedule.computed.len().saturating_sub(2);
        // Around the calls, until none has given anything since the one that comes now.
        let (mut pair, mut idle) = (0, 0);
        let mut so_far = Vec::new();
        while idle < pairs && self.left > 0 && !self.stopped {
            if pair == 0 {
                so_far = self.judge.begin(&best.schedule)?;
            }
            let call = 1 + pair;
            pair = (pair + 1) % pairs;
            idle += 1;
            let mut schedule = best.schedule.clone();
            if schedule.computed[call] == schedule.computed[call + 1] {
                continue;
            }
            schedule.computed.swap(call, call + 1);
            self.left -= 1;
            let psnr = match self.judge.try_from(call, &mut so_far, &schedule) {
                Err(Error::Model(ModelError::Interrupted)) => {
                    self.stopped = true;
                    break;
                }
                psnr => psnr?,
            };
            if psnr > best.psnr {
                idle = 0;
                so_far = fork(&so_far, &schedule)?;
                best = Selected { exchanges: best.exchanges + 1, psnr, schedule, ..best };
            }
            self.judge.observer.tell(&format!("{:.2} dB", best.psnr));
            // The next try is stopped where this one would have been.
            drop(self.judge.observer.advance(1));
        }
        Ok(best)
    }
}

/// The PSNR of all schedules that were tried, in a reproducible order.
struct Tries<'a> {
    progress: Option<&'a Progress>,
    /// Digest and PSNR of each schedule.
    tried: RefCell<Vec<(String, f64)>>,
    /// How many of them this run has reached. A stopped run may have tried more.
    done: Cell<usize>,
    saved: Cell<Instant>,
}

impl<'a> Tries<'a> {
    fn new(progress: Option<&'a Progress>, observer: &dyn Observer) -> Result<Self> {
        let tried = progress
            .map(|progress| progress.read(TRIED, observer))
            .transpose()?
            .flatten()
            .unwrap_or_default();
        Ok(Self {
            progress,
            tried: RefCell::new(tried),
            done: Cell::new(0),
            saved: Cell::new(Instant::now()),
        })
    }

    /// Returns the PSNR of the next schedule, from the stopped run or by `attempt`.
    fn next(&self, schedule: &ReuseSchedule, attempt: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let place = self.done.get();
        let schedule = digest([schedule.to_json()?]);
        let known = self
            .tried
            .borrow()
            .get(place)
            .filter(|(tried, _)| *tried == schedule)
            .map(|(_, psnr)| *psnr);
        let psnr = match known {
            Some(psnr) => psnr,
            None => {
                let psnr = attempt()?;
                let mut tried = self.tried.borrow_mut();
                tried.truncate(place);
                tried.push((schedule, psnr));
                psnr
            }
        };
        self.done.set(place + 1);
        if self.saved.get().elapsed() > INTERVAL {
            self.save()?;
        }
        Ok(psnr)
    }

    fn save(&self) -> Result<()> {
        self.saved.set(Instant::now());
        let tried = self.tried.borrow();
        match self.progress.filter(|_| !tried.is_empty()) {
            Some(progress) => progress.write(TRIED, &*tried),
            None => Ok(()),
        }
    }
}

/// Compares pictures of schedules with those of the whole run.
struct Judge<'a> {
    pipeline: &'a Pipeline,
    sampling: &'a Sampling,
    tries: Tries<'a>,
    observer: &'a dyn Observer,
    batches: Vec<Batch>,
    wanted: Vec<Picture>,
}

/// Pictures that are drawn together.
struct Batch {
    images: Range<usize>,
    noise: Tensor,
    conditioning: Conditioning,
}

impl<'a> Judge<'a> {
    fn new(
        pipeline: &'a Pipeline,
        whole: &ReuseSchedule,
        learning: &'a Learning,
        tries: Tries<'a>,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        let Learning { prompts, sampling, .. } = learning;
        let batch = |images: Range<usize>| {
            let conditioning = pipeline.guided_conditioning(
                &prompts[images.clone()],
                sampling.latent,
                sampling,
            )?;
            Ok(Batch { noise: pipeline.noise(images.clone(), sampling)?, images, conditioning })
        };
        let batches =
            sampling.batches(prompts.len().min(JUDGED)).map(batch).collect::<Result<_>>()?;
        let mut judge = Self { pipeline, sampling, tries, observer, batches, wanted: Vec::new() };
        judge.wanted = judge.pictures(judge.begin(whole)?)?;
        Ok(judge)
    }

    /// Returns each schedule in its best order, the closest first.
    fn in_best_orders(&self, schedules: Vec<(String, ReuseSchedule)>) -> Result<Vec<Selected>> {
        let mut best = Vec::new();
        for (from, schedule) in schedules {
            let mut orders = Vec::new();
            for order in 0..ORDERS {
                let schedule = ReuseSchedule { order, ..schedule.clone() };
                let psnr = self.tries.next(&schedule, || self.psnr(self.begin(&schedule)?))?;
                orders.push(Selected { from: from.clone(), exchanges: 0, psnr, schedule });
                self.observer.advance(1)?;
            }
            best.extend(orders.into_iter().max_by(|a, b| a.psnr.total_cmp(&b.psnr)));
        }
        best.sort_by(|a, b| b.psnr.total_cmp(&a.psnr));
        Ok(best)
    }

    /// Starts runs of a schedule, one per batch, before their first step.
    fn begin<'b>(&'b self, schedule: &ReuseSchedule) -> Result<Vec<Denoising<'b>>> {
        let sampling =
            Sampling { reuse: Some(Arc::new(schedule.clone())), ..self.sampling.clone() };
        let begin = |batch: &'b Batch| {
            let Batch { images, noise, conditioning } = batch;
            Ok(Denoising::new(self.pipeline, noise, conditioning, images.clone(), &sampling, None)?)
        };
        self.batches.iter().map(begin).collect()
    }

    /// Returns the PSNR of a schedule that differs from that of `runs` only from a call on. `runs`
    /// advance to the step of that call. Copies of them continue to their end with the schedule.
    fn try_from(
        &self,
        call: usize,
        runs: &mut [Denoising<'_>],
        schedule: &ReuseSchedule,
    ) -> Result<f64> {
        self.tries.next(schedule, || {
            for run in runs.iter_mut() {
                while run.next_calls().end <= call && run.step()? {
                    self.observer.advance(0)?;
                }
            }
            self.psnr(fork(runs, schedule)?)
        })
    }

    /// Advances runs to their end, and returns their pictures.
    fn pictures(&self, runs: Vec<Denoising<'_>>) -> Result<Vec<Picture>> {
        let mut pictures = Vec::new();
        for mut run in runs {
            while run.step()? {
                self.observer.advance(0)?;
            }
            pictures.extend(split(&self.pipeline.pictures(run.latents())?)?);
        }
        Ok(pictures)
    }

    fn psnr(&self, runs: Vec<Denoising<'_>>) -> Result<f64> {
        let pictures = self.pictures(runs)?;
        let psnr = |(wanted, picture)| psnr_capped(wanted, picture);
        let all = self
            .wanted
            .iter()
            .zip(&pictures)
            .map(psnr)
            .collect::<secateur_eval::Result<Vec<f64>>>()?;
        Ok(all.iter().sum::<f64>() / all.len().max(1) as f64)
    }
}

/// Copies runs, to continue with another schedule.
fn fork<'a>(runs: &[Denoising<'a>], schedule: &ReuseSchedule) -> Result<Vec<Denoising<'a>>> {
    let schedule = Arc::new(schedule.clone());
    runs.iter().map(|run| Ok(run.fork(&schedule)?)).collect()
}
