//! From scores to the schedule that is kept, by the pictures that schedules give.

use crate::baselines::{EVENLY, evenly};
use crate::error::Result;
use crate::learn::Learning;
use crate::scores::{Scores, Selection};
use candle_core::Tensor;
use secateur_models::{Observer, Pipeline, ReuseSchedule, Sampling};
use std::sync::Arc;

/// A schedule that was tried.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Where it comes from.
    pub how: String,
    /// The loss of some of the pictures that were learned from.
    pub loss: f64,
    /// The schedule.
    pub schedule: ReuseSchedule,
}

/// Pictures on which schedules are compared.
const JUDGED: usize = 8;
/// Orders in which what is taken over is forecast.
const ORDERS: usize = 3;

/// Selects by scores in all ways, and tries calls that are evenly spread beside these, each in all orders of
/// [`ReuseSchedule::order`]. The closest is then made closer by exchanging what is computed at successive calls, where that gives closer
/// pictures, in no more than `exchanges` tries. The one whose pictures are closest comes first; then each that was tried, in its best
/// order.
///
/// # Errors
/// If the model fails, or the observer interrupts.
pub fn select(
    pipeline: &Pipeline,
    scores: &Scores,
    whole: &ReuseSchedule,
    learning: &Learning,
    exchanges: usize,
    observer: &dyn Observer,
) -> Result<Vec<Selected>> {
    let structure = pipeline.structure(&learning.sampling);
    let learned = |how| Ok((format!("learned, {how}"), scores.select(how, whole, &structure, learning.keep)?));
    let even = || Ok((EVENLY.to_owned(), evenly(whole, &structure, learning.keep)?));
    let schedules = [learned(Selection::Bisection), learned(Selection::Cascade), even()];
    let schedules: Vec<(String, ReuseSchedule)> = schedules.into_iter().collect::<Result<_>>()?;

    observer.begin("select", schedules.len() * ORDERS, "schedules");
    let judge = Judge::new(pipeline, learning, observer)?;
    let mut tried = Vec::new();
    for (how, schedule) in schedules {
        let mut orders = Vec::new();
        for order in 0..ORDERS {
            let schedule = ReuseSchedule { order, ..schedule.clone() };
            let how = if order == 0 { how.clone() } else { format!("{how}, order {order}") };
            orders.push(Selected { how, loss: judge.loss(&schedule)?, schedule });
            observer.advance(1)?;
        }
        tried.extend(orders.into_iter().min_by(|a, b| a.loss.total_cmp(&b.loss)));
    }
    tried.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    observer.begin("exchange", exchanges, "schedules");
    let exchanged = tried.first().map(|best| exchange(best, &judge, exchanges, observer)).transpose()?.flatten();
    Ok(exchanged.into_iter().chain(tried).collect())
}

/// Exchanges what is computed at a call and at the next, as long as that gives closer pictures.
fn exchange(
    start: &Selected,
    judge: &Judge<'_>,
    exchanges: usize,
    observer: &dyn Observer,
) -> Result<Option<Selected>> {
    let mut best = start.clone();
    let (mut made, mut tries) = (0, 0);
    // Around the calls until none has given anything since the one that comes now.
    let pairs = best.schedule.computed.len().saturating_sub(2);
    let (mut pair, mut idle) = (0, 0);
    while idle < pairs && tries < exchanges {
        let call = 1 + pair;
        pair = (pair + 1) % pairs;
        idle += 1;
        let mut schedule = best.schedule.clone();
        if schedule.computed[call] == schedule.computed[call + 1] {
            continue;
        }
        schedule.computed.swap(call, call + 1);
        tries += 1;
        let loss = judge.loss(&schedule)?;
        if loss < best.loss {
            (made, idle) = (made + 1, 0);
            best = Selected { how: format!("{}, {made} exchanges", start.how), loss, schedule };
            observer.tell(&format!("{} {loss:.4}", judge.learning.loss));
        }
        observer.advance(1)?;
    }
    Ok((made > 0).then_some(best))
}

/// Compares pictures of schedules with those of the whole run.
struct Judge<'a> {
    pipeline: &'a Pipeline,
    learning: &'a Learning,
    observer: &'a dyn Observer,
    prompts: &'a [String],
    wanted: Tensor,
}

impl<'a> Judge<'a> {
    fn new(pipeline: &'a Pipeline, learning: &'a Learning, observer: &'a dyn Observer) -> Result<Self> {
        let prompts = &learning.prompts[..learning.prompts.len().min(JUDGED)];
        let wanted = draw(pipeline, prompts, &learning.sampling, observer)?;
        Ok(Self { pipeline, learning, observer, prompts, wanted })
    }

    fn loss(&self, schedule: &ReuseSchedule) -> Result<f64> {
        let sampling = Sampling { reuse: Some(Arc::new(schedule.clone())), ..self.learning.sampling.clone() };
        let pictures = draw(self.pipeline, self.prompts, &sampling, self.observer)?;
        Ok(f64::from(self.learning.loss.of(&pictures, &self.wanted)?.to_scalar::<f32>()?))
    }
}

fn draw(pipeline: &Pipeline, prompts: &[String], sampling: &Sampling, observer: &dyn Observer) -> Result<Tensor> {
    let draw =
        |images| Ok(pipeline.pictures(&pipeline.sample(prompts, images, sampling, None, &Quiet(observer))?)?);
    Ok(Tensor::cat(&sampling.batches(prompts.len()).map(draw).collect::<Result<Vec<_>>>()?, 0)?)
}

/// Only whether to stop.
pub(crate) struct Quiet<'a>(pub(crate) &'a dyn Observer);

impl Observer for Quiet<'_> {
    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        self.0.advance(0)
    }
}
