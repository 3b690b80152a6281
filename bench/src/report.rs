//! What a bench found: rows of figures and the bounds they have to keep, as a table for people or
//! as JSON.
//!
//! A row is one promise. Its figures are spreads over runs; its bounds are made of their medians.
//! A bound whose value could not be measured does not hold.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::measure::Spread;

/// All rows of a bench.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The bench, as it is called on the command line.
    pub bench: &'static str,
    /// Where it ran and how often, in the order in which it is shown.
    pub ground: Vec<(&'static str, String)>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// Where a table is made, how often each side runs, and one thing more.
pub(crate) fn ground(
    runs: usize,
    more: (&'static str, String),
) -> std::io::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let runs = runs.to_string();
    Ok(vec![("cores", cores.to_string()), ("kernel", kernel), ("runs of each", runs), more])
}

/// One promise, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What was done.
    pub what: String,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What it is held to.
    pub bounds: Vec<Bound>,
    /// What a reader of the figures has to know, such as who could not be measured and why.
    pub notes: Vec<String>,
}

/// One quantity over all runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Whose, or under which condition.
    pub of: String,
    /// Its unit.
    pub unit: &'static str,
    /// Its values.
    pub spread: Spread,
}

/// A value and its limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// What the value is.
    pub what: String,
    /// The value.
    pub value: f64,
    /// What it may be.
    pub limit: Limit,
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Figure {
    /// A figure.
    pub fn new(of: impl Into<String>, unit: &'static str, spread: Spread) -> Self {
        Self { of: of.into(), unit, spread }
    }
}

impl Bound {
    /// A bound.
    pub fn new(what: impl Into<String>, value: f64, limit: Limit) -> Self {
        Self { what: what.into(), value, limit }
    }

    /// Whether the value keeps it.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self.limit {
            Limit::AtLeast(least) => self.value >= least,
            Limit::AtMost(most) => self.value <= most,
        }
    }

    fn limit(&self) -> (&'static str, f64) {
        match self.limit {
            Limit::AtLeast(least) => ("at least", least),
            Limit::AtMost(most) => ("at most", most),
        }
    }
}

impl Table {
    /// Whether every bound holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.bounds).all(Bound::holds)
    }

    /// For a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let ground: serde_json::Map<String, Value> =
            self.ground.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "bench": self.bench, "ground": ground, "holds": self.holds(), "rows": rows })
    }

    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let ground: Vec<String> =
            self.ground.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut text = format!("{}: {}\n", self.bench, ground.join(", "));
        for row in &self.rows {
            row.write(&mut text);
        }
        text
    }
}

impl Row {
    fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let spread = &figure.spread;
            json!({
                "of": figure.of, "unit": figure.unit, "median": spread.median(),
                "min": spread.min(), "max": spread.max(), "runs": spread.sorted(),
            })
        };
        let bound = |bound: &Bound| {
            let (kind, limit) = bound.limit();
            json!({
                "what": bound.what, "value": bound.value, "kind": kind, "limit": limit,
                "holds": bound.holds(),
            })
        };
        json!({
            "row": self.name,
            "what": self.what,
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "bounds": self.bounds.iter().map(bound).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    fn write(&self, text: &mut String) {
        let mut line = |line: std::fmt::Arguments<'_>| {
            // A String takes whatever it is given.
            text.write_fmt(format_args!("{line}\n")).ok();
        };
        line(format_args!("\n{}  {}", self.name, self.what));
        let labels = self.figures.iter().map(|figure| &figure.of);
        let labels = labels.chain(self.bounds.iter().map(|bound| &bound.what));
        let width = labels.map(|label| label.chars().count()).max().unwrap_or(0);
        for Figure { of, unit, spread } in &self.figures {
            let (median, min, max) = (spread.median(), spread.min(), spread.max());
            line(format_args!(
                "  {of:<width$}  {median:>10.3} {unit:<9}  ({min:.3} to {max:.3} in {} runs)",
                spread.sorted().len()
            ));
        }
        for bound in &self.bounds {
            let (kind, limit) = bound.limit();
            let verdict = if bound.holds() { "holds" } else { "MISSED" };
            let (what, value) = (&bound.what, bound.value);
            line(format_args!("  {what:<width$}  {value:>10.3} {kind} {limit}: {verdict}"));
        }
        for note in &self.notes {
            line(format_args!("  note: {note}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(value: f64) -> Table {
        let spread = [3.0, 1.0, 2.0].into_iter().collect();
        Table {
            bench: "origin",
            ground: vec![("cores", "2".to_owned()), ("runs", "3".to_owned())],
            rows: vec![Row {
                name: "cold",
                what: "a load".to_owned(),
                figures: vec![Figure::new("raw loop", "GB/s", spread)],
                bounds: vec![Bound::new("of the raw loop", value, Limit::AtLeast(0.85))],
                notes: vec!["nobody else could run".to_owned()],
            }],
        }
    }

    #[test]
    fn a_bound_holds_or_is_missed() {
        let at = |value, limit| Bound::new("", value, limit).holds();
        assert!(at(0.85, Limit::AtLeast(0.85)) && !at(0.84, Limit::AtLeast(0.85)));
        assert!(at(1.3, Limit::AtMost(1.3)) && !at(1.31, Limit::AtMost(1.3)));
        assert!(!at(f64::NAN, Limit::AtLeast(0.0)) && !at(f64::NAN, Limit::AtMost(9.0)));
        assert!(table(0.9).holds() && !table(0.8).holds());
    }

    #[test]
    fn the_table_says_what_was_measured_and_what_it_is_held_to() {
        assert_eq!(
            table(0.8).text(),
            "origin: cores 2, runs 3\n\n\
             cold  a load\n  \
             raw loop              2.000 GB/s       (1.000 to 3.000 in 3 runs)\n  \
             of the raw loop       0.800 at least 0.85: MISSED\n  \
             note: nobody else could run\n"
        );
    }

    #[test]
    fn json_has_every_run_and_null_for_what_was_not_measured() {
        let json = table(0.9).json();
        let row = &json["rows"][0];
        assert_eq!(json["holds"], true);
        assert_eq!(json["ground"]["cores"], "2");
        assert_eq!(row["figures"][0]["runs"], json!([1.0, 2.0, 3.0]));
        assert_eq!(row["figures"][0]["median"], 2.0);
        assert_eq!(row["bounds"][0]["kind"], "at least");
        assert_eq!(row["notes"], json!(["nobody else could run"]));
        let missing = table(f64::NAN).json();
        assert_eq!(missing["rows"][0]["bounds"][0]["value"], Value::Null);
        assert_eq!(missing["holds"], false);
    }
}
