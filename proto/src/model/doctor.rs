//! What `doctor` answers: check by check, what is in the way of loads.

use super::Malformed;
use crate::pb;

/// Whether something is in the way of loads; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It is as it should be, or of no matter.
    Ok,
    /// It costs something.
    Warn,
    /// Something does not work.
    Bad,
}

impl Verdict {
    /// Its name: `ok`, `warn` or `bad`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it belongs to: `client`, `daemon`, `machine`, `memory`, `nvme`, `network`, `degraded`,
    /// `credentials`, `evidence`, or what a later daemon adds.
    pub group: String,
    /// What it is.
    pub name: String,
    /// What is thought of it.
    pub verdict: Verdict,
    /// What was found. Never a secret.
    pub found: String,
    /// What to do; empty if nothing has to be done.
    pub advice: String,
}

impl Check {
    /// Checks the message.
    pub fn receive(check: pb::DoctorCheck) -> Result<Self, Malformed> {
        let pb::DoctorCheck { group, name, verdict, found, advice } = check;
        let verdict = match verdict.as_str() {
            "ok" => Verdict::Ok,
            "warn" => Verdict::Warn,
            "bad" => Verdict::Bad,
            other => {
                let what = format!("the verdict on {name} is {other:?}");
                return Err(Malformed::new("DoctorCheck", what));
            }
        };
        Ok(Self { group, name, verdict, found, advice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_one_of_three() {
        let check = |verdict: &str| {
            Check::receive(pb::DoctorCheck { verdict: verdict.into(), ..Default::default() })
        };
        for verdict in [Verdict::Ok, Verdict::Warn, Verdict::Bad] {
            assert_eq!(check(verdict.as_str()).unwrap().verdict, verdict);
        }
        check("fine").unwrap_err();
        assert!(Verdict::Ok < Verdict::Warn && Verdict::Warn < Verdict::Bad);
    }
}
