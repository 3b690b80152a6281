//! Plots as SVG, drawn here: the page needs no script, no font and no network.
//!
//! A plot has a frame with axes in round steps, and marks in data coordinates. Text is escaped where
//! it is written, whatever it is.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Below this, a scale is of milliseconds.
const FEW_SECONDS: f64 = 0.5;
/// A line of a chart of bars.
const BAR: f64 = 26.0;

/// Colours that are told apart, also by those who do not see red and green (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933", "#666666"];

/// The colour of the `number`th thing.
pub(super) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Text as HTML and SVG have it, in content and in attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are no text of any document.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A number with three digits that count.
pub(super) fn shown(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{value:.3e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// Some points with a name.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Whether the points are joined by a line.
    pub(super) joined: bool,
}

/// Values on a plane.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) series: Vec<Series>,
}

/// Round values from 0, or from the least, to the greatest: a handful.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let span = to - from;
    if !span.is_finite() || span <= 0.0 {
        return vec![from];
    }
    let magnitude = 10_f64.powf((span / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
    let step = steps.into_iter().find(|step| span / step <= 6.0).unwrap_or(span);
    let first = (from / step).ceil();
    (0..12)
        .map(|n| (first + f64::from(n)) * step)
        .take_while(|at| *at <= to + step * 1e-9)
        .collect()
}

/// From the least to the greatest of some values, and something where there is nothing.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values
        .filter(|value| value.is_finite())
        .fold((0.0_f64, f64::NEG_INFINITY), |(least, most), v| (least.min(v), most.max(v)));
    // A little room, so that no mark lies on the frame.
    if most > least { (least, most + 0.03 * (most - least)) } else { (0.0, 1.0) }
}

impl Chart {
    /// The plot.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x, y) = (range(points().map(|point| point.0)), range(points().map(|point| point.1)));
        let across = |at: f64| LEFT + (at - x.0) / (x.1 - x.0) * (WIDTH - LEFT - RIGHT);
        let up = |at: f64| HEIGHT - BOTTOM - (at - y.0) / (y.1 - y.0) * (HEIGHT - TOP - BOTTOM);
        let mut out = begin(WIDTH, HEIGHT);
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for at in ticks(y.0, y.1) {
            let (level, text) = (up(at), shown(at));
            put(
                &mut out,
                format_args!(
                    "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{level:.1}\" x2=\"{right:.1}\" y2=\"{level:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                    left - 6.0,
                    level + 4.0
                ),
            );
        }
        for at in ticks(x.0, x.1) {
            let (place, text) = (across(at), shown(at));
            put(
                &mut out,
                format_args!(
                    "<line class=\"grid\" x1=\"{place:.1}\" y1=\"{TOP}\" x2=\"{place:.1}\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                    bottom + 15.0
                ),
            );
        }
        put(
            &mut out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
                f64::midpoint(left, right),
                HEIGHT - 8.0,
                escaped(self.x),
                TOP - 3.0,
                escaped(self.y)
            ),
        );
        for (number, series) in self.series.iter().enumerate() {
            let place = |(x, y): &(f64, f64)| (across(*x), up(*y));
            marks(&mut out, series, colour(number), place);
        }
        out.push_str("</svg>");
        out + &legend(self.series.iter().map(|series| series.name.as_str()))
    }
}

fn marks(
    out: &mut String,
    series: &Series,
    colour: &str,
    place: impl Fn(&(f64, f64)) -> (f64, f64),
) {
    let whole = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    if series.joined {
        out.push_str("<polyline fill=\"none\" points=\"");
        for (x, y) in series.points.iter().filter(whole).map(&place) {
            put(out, format_args!("{x:.1},{y:.1} "));
        }
        put(out, format_args!("\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"));
        return;
    }
    for point in series.points.iter().filter(whole) {
        let (x, y) = place(point);
        put(
            out,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{}: {}, {}</title></circle>",
                escaped(&series.name),
                shown(point.0),
                shown(point.1)
            ),
        );
    }
}

/// One bar of parts that follow each other, or of stretches with gaps.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) name: String,
    /// From, to, of which kind, and what it is.
    pub(super) parts: Vec<(f64, f64, usize, String)>,
}

/// Bars below each other, on one scale; `kinds` are the names of the colours. Parts are in seconds,
/// the scale is of milliseconds where these are few.
pub(super) fn bars(bars: &[Bar], what: &str, kinds: &[String]) -> String {
    let most = bars.iter().flat_map(|bar| &bar.parts).map(|part| part.1).fold(0.0, f64::max);
    let (scale, unit) = if most < FEW_SECONDS { (1000.0, "ms") } else { (1.0, "s") };
    let most = if most > 0.0 { scale * most } else { 1.0 };
    let left = 150.0;
    let count = f64::from(u32::try_from(bars.len()).unwrap_or(u32::MAX));
    let height = count * BAR + TOP + BOTTOM;
    let across = |at: f64| left + at / most * (WIDTH - left - RIGHT);
    let mut out = begin(WIDTH, height);
    for at in ticks(0.0, most) {
        let (place, bottom) = (across(at), height - BOTTOM);
        put(
            &mut out,
            format_args!(
                "<line class=\"grid\" x1=\"{place:.1}\" y1=\"{TOP}\" x2=\"{place:.1}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 15.0,
                shown(at)
            ),
        );
    }
    let mut top = TOP;
    for bar in bars {
        put(
            &mut out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                top + BAR * 0.6,
                escaped(&bar.name)
            ),
        );
        for (from, to, kind, what) in &bar.parts {
            let begin = across(scale * from);
            let width = (across(scale * to) - begin).max(0.6);
            put(
                &mut out,
                format_args!(
                    "<rect x=\"{begin:.2}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"{:.1}\" fill=\"{}\">\
                 <title>{}</title></rect>",
                    top + 3.0,
                    BAR - 8.0,
                    colour(*kind),
                    escaped(what)
                ),
            );
        }
        top += BAR;
    }
    put(
        &mut out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}, {unit}</text></svg>",
            f64::midpoint(left, WIDTH),
            height - 8.0,
            escaped(what)
        ),
    );
    out + &legend(kinds.iter().map(String::as_str))
}

fn begin(width: f64, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">")
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut out = "<p class=\"legend\">".to_owned();
    for (number, name) in names.enumerate() {
        put(
            &mut out,
            format_args!(
                "<span><i style=\"background:{}\"></i>{}</span> ",
                colour(number),
                escaped(name)
            ),
        );
    }
    out + "</p>"
}

/// A String takes whatever it is given.
pub(super) fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_only_text() {
        assert_eq!(
            escaped("<script>\"a\" & 'b'\u{0}"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;\u{fffd}"
        );
        let name = "</svg><script>alert(1)</script>".to_owned();
        let series = Series { name: name.clone(), points: vec![(0.0, 1.0)], joined: false };
        let chart = Chart { x: "x", y: "y", series: vec![series] }.svg();
        let bars = bars(&[Bar { name: name.clone(), parts: vec![(0.0, 1.0, 0, name)] }], "s", &[]);
        assert!(!chart.contains("<script") && !bars.contains("<script"), "{chart}{bars}");
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (from, to) in [(0.0, 1.0), (0.0, 0.0371), (0.0, 987.0), (3.0, 7.0)] {
            let found = ticks(from, to);
            assert!((3..=8).contains(&found.len()), "{from} to {to}: {found:?}");
            assert!(found.iter().all(|at| (from..=to * 1.0001).contains(at)), "{found:?}");
        }
        assert_eq!(ticks(1.0, 1.0), [1.0]);
        assert_eq!(range([f64::NAN].into_iter()), (0.0, 1.0));
    }

    #[test]
    fn what_is_not_a_number_is_not_drawn() {
        let series = |joined| Series {
            name: "a".to_owned(),
            points: vec![(0.0, f64::NAN), (f64::INFINITY, 1.0), (1.0, 2.0)],
            joined,
        };
        for joined in [true, false] {
            let chart = Chart { x: "x", y: "y", series: vec![series(joined)] }.svg();
            assert!(!chart.contains("NaN") && !chart.contains("inf"), "{chart}");
        }
        assert_eq!((shown(f64::NAN).as_str(), shown(0.25).as_str()), ("-", "0.250"));
    }
}
