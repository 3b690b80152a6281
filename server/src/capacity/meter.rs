//! The meters of the stages: a [`Series`] behind a lock that is held for some additions, once or
//! twice per chunk or part.
//!
//! Who works holds a [`Working`]; dropped without [`Working::done`] its time counts and nothing
//! else. Owned by the stage that it measures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{Rate, Scale, Series};

/// Origins, or devices, that are measured apart; others share one meter.
const APART_MAX: usize = 64;

/// The name of that one.
const OTHERS: &str = "others";

/// Measures one stage.
#[derive(Debug)]
pub(crate) struct Meter(Mutex<Series>);

impl Default for Meter {
    fn default() -> Self {
        Self(Mutex::new(Series::new(Instant::now())))
    }
}

/// An operation under way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Working<'a> {
    meter: &'a Meter,
    began: Instant,
    made: (u64, u64),
}

impl Working<'_> {
    /// It is over, and has brought so many bytes.
    pub(crate) fn done(self, bytes: u64) {
        self.made(bytes, bytes);
    }

    /// It is over, and has made `bytes` of `source`.
    pub(crate) fn made(mut self, bytes: u64, source: u64) {
        self.made = (bytes, source);
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.meter.lock().end(self.began, Instant::now(), self.made);
    }
}

/// What a meter says now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    /// What was measured, if it was.
    pub(crate) rate: Option<Rate>,
    /// Bytes per second at present.
    pub(crate) present: f64,
}

impl Meter {
    /// An operation begins.
    pub(crate) fn begin(&self) -> Working<'_> {
        let began = Instant::now();
        self.lock().begin(began);
        Working { meter: self, began, made: (0, 0) }
    }

    /// An operation that is only heard of when it is over, and that worked alone from its second
    /// moment on.
    pub(crate) fn ran(&self, began: (Instant, Instant), ended: Instant, bytes: u64) {
        self.lock().ran(began, ended, bytes);
    }

    /// What it says now.
    pub(crate) fn read(&self, scale: Scale) -> Reading {
        let (series, now) = (self.lock(), Instant::now());
        Reading { rate: series.rate(now, scale), present: series.present(now) }
    }

    fn lock(&self) -> MutexGuard<'_, Series> {
        // Half an addition is a wrong figure for some minutes, and nothing worse.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Meters by name: a stage that there are several of.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<BTreeMap<String, Arc<Meter>>>);

impl Meters {
    /// The meter of that name.
    pub(crate) fn of(&self, name: &str) -> Arc<Meter> {
        let mut meters = self.lock();
        if let Some(meter) = meters.get(name) {
            return Arc::clone(meter);
        }
        let name = if meters.len() < APART_MAX { name } else { OTHERS };
        Arc::clone(meters.entry(name.to_owned()).or_default())
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Meter>)> {
        let meters = self.lock();
        meters.iter().map(|(name, meter)| (name.clone(), Arc::clone(meter))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Meter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Meters of what no stage of its own does.
#[derive(Debug, Default)]
pub(crate) struct LoadMeters {
    /// Chunks in RAM, from the moment they are found until the stream to the client takes them.
    pub(crate) handoff: Meter,
    /// Copies of clients, by device.
    pub(crate) copies: Meters,
    /// Digests of whole objects.
    pub(crate) objects: Meter,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_costs_time_and_brings_nothing() {
        let meter = Meter::default();
        for _ in 0..8 {
            let working = meter.begin();
            tokio::time::advance(Duration::from_millis(100)).await;
            working.done(1_000_000);
            let given_up = meter.begin();
            tokio::time::advance(Duration::from_millis(100)).await;
            drop(given_up);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let rate = meter.read(Scale::Whole).rate.unwrap();
        assert!((rate.bytes_per_second - 5e6).abs() < 1e3, "{rate:?}");
    }

    #[test]
    fn names_are_bounded() {
        let meters = Meters::default();
        for name in 0..200 {
            meters.of(&name.to_string());
        }
        assert_eq!(meters.all().len(), APART_MAX + 1);
        assert!(Arc::ptr_eq(&meters.of("7"), &meters.of("7")));
        assert!(Arc::ptr_eq(&meters.of("900"), &meters.of(OTHERS)));
    }
}
