//! A mix of everything that can go wrong on the way and be put right by asking again.

use std::time::Duration;

use crate::fault::{Fault, FaultRule, When};
use crate::random::Prng;

/// What [`chaos`] makes.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Chooses the places and the requests.
    pub seed: u64,
    /// The keys, as in [`FaultRule::new`].
    pub keys: String,
    /// The size of a usual response body: breaks come at places within it.
    pub body_bytes: u64,
    /// Of a thousand requests, about so many are struck.
    pub per_mille: u32,
    /// Whether bits are flipped too, which only a digest can tell.
    pub flips: bool,
}

/// Rules that strike GETs with one transient fault of many kinds each, by the seed.
pub fn chaos(plan: &Chaos) -> Vec<FaultRule> {
    let mut prng = Prng::new(plan.seed);
    let mut place = || prng.below(plan.body_bytes);
    let mut faults = vec![
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 502, retry_after: None },
        Fault::Status { code: 504, retry_after: None },
        Fault::ResetBeforeHeaders,
        Fault::CloseBeforeHeaders,
        Fault::ResetAfter(0),
        Fault::ResetAfter(place()),
        Fault::ResetAfter(plan.body_bytes.saturating_sub(1)),
        Fault::TruncateTo(place()),
        Fault::ShortBody(place()),
        Fault::Overlong(1 + place()),
        Fault::WrongRange(1 + place()),
        Fault::FullBodyTo200,
        Fault::Delay(Duration::from_millis(5)),
    ];
    if plan.flips {
        faults.push(Fault::FlipBit(place()));
        faults.push(Fault::Misplaced(1 + place()));
    }
    let kinds = u32::try_from(faults.len()).unwrap_or(u32::MAX);
    let each = (plan.per_mille / kinds).max(1);
    let rule = |fault| {
        let when = When::Chance { seed: prng.next_u64(), per_mille: each };
        FaultRule::new(plan.keys.clone(), fault).when(when)
    };
    faults.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let plan = |seed| Chaos {
            seed,
            keys: "*".to_owned(),
            body_bytes: 1 << 20,
            per_mille: 100,
            flips: true,
        };
        let shown = |seed| format!("{:?}", chaos(&plan(seed)));
        assert_eq!(shown(1), shown(1));
        assert_ne!(shown(1), shown(2));
        assert_eq!(chaos(&plan(1)).len(), 16);
        assert_eq!(chaos(&Chaos { flips: false, ..plan(1) }).len(), 14);
    }
}
