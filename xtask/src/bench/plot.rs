//! The phases of one start as an SVG, drawn from a trace: the start in the middle of several by
//! its length.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use e2e::Installation;

use super::figure::{Figure, Promise};
use super::trace::{self, Span};
use super::{Bench, ready};

/// A start from a spare; writes `docs/start.svg`.
pub fn plot(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    ready::template(&it, "busybox")?;
    let mut starts = Vec::new();
    for _ in 0..=bench.rounds {
        ready::rest(&it, true)?;
        starts.push(trace::of_a_start(&it, "busybox")?);
    }
    // The first fills caches.
    starts.remove(0);
    let lengths: Vec<f64> = starts.iter().map(|spans| trace::end(spans)).collect();
    starts.sort_by(|a, b| trace::end(a).total_cmp(&trace::end(b)));
    let middle = starts.get(starts.len() / 2).context("no starts")?;
    let path = bench.workspace.root.join("docs/start.svg");
    let title = "container run --rm busybox true, from a spare";
    std::fs::write(&path, svg(title, middle))
        .with_context(|| format!("write {}", path.display()))?;
    println!("drawn: {}", path.display());
    let name = "a traced start from a spare, first instruction to last span";
    Ok(vec![Figure::new(name, "ms", lengths, Promise::Stated)])
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 300.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 64.0;
const ROW: f64 = 20.0;
const COLOURS: [&str; 6] = ["#4477aa", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#66ccee"];

/// A row for each span, in the order of their beginnings; a colour for each process.
fn svg(title: &str, spans: &[Span]) -> String {
    let end = trace::end(spans).max(0.001);
    let x = |ms: f64| LEFT + ms / end * (WIDTH - LEFT - RIGHT);
    let mut processes: Vec<&str> = Vec::new();
    for span in spans {
        if !processes.contains(&&*span.process) {
            processes.push(&span.process);
        }
    }
    let colour = |process: &str| {
        let at = processes.iter().position(|known| *known == process).unwrap_or(0);
        COLOURS[at % COLOURS.len()]
    };
    let bottom = TOP + ROW * spans.len() as f64;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" \
         font-family=\"sans-serif\" font-size=\"12\">",
        bottom + 30.0
    ));
    line("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>".into());
    line(text(WIDTH / 2.0, 20.0, "middle", &format!("{title} ({end:.0} ms)")));
    let mut at = 10.0;
    for process in &processes {
        line(format!(
            "<rect x=\"{at}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(process)
        ));
        line(text(at + 16.0, 42.0, "start", process));
        at += 36.0 + 7.0 * process.len() as f64;
    }
    let step = step(end);
    let mut tick = 0.0;
    while tick <= end {
        let at = x(tick);
        line(format!(
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#dddddd\" stroke-width=\"1\"/>"
        ));
        line(text(at, bottom + 16.0, "middle", &format!("{tick} ms")));
        tick += step;
    }
    for (row, span) in spans.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let width = (x(span.end) - x(span.begin)).max(1.0);
        line(text(LEFT - 8.0, y + 14.0, "end", &span.name));
        line(format!(
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/>",
            x(span.begin),
            y + 3.0,
            ROW - 6.0,
            colour(&span.process)
        ));
        let took = format!("{:.1}", span.end - span.begin);
        line(text(x(span.begin) + width + 4.0, y + 14.0, "start", &took));
    }
    line("</svg>".into());
    out
}

/// A distance of lines that makes five to twelve of them.
fn step(end: f64) -> f64 {
    let mut step = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if end / step <= 12.0 {
            break;
        }
        step *= factor;
    }
    step
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let mut escaped = String::new();
    for c in words.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            c if c.is_control() => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{escaped}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_is_drawn_within_the_picture() {
        let span = |process: &str, name: &str, begin, end| Span {
            process: process.into(),
            name: name.into(),
            begin,
            end,
        };
        let drawn =
            svg("a & b", &[span("cli", "all", 0.0, 80.0), span("helper", "<x>", 10.0, 70.5)]);
        assert_eq!(drawn.matches("<rect").count(), 1 + 2 + 2);
        assert!(drawn.contains("&lt;x>") && drawn.contains("a &amp; b (80 ms)"), "{drawn}");
        assert!(drawn.contains("60.5") && drawn.contains("80 ms"));
        assert_eq!((step(0.5), step(80.0), step(1700.0)), (1.0, 10.0, 200.0));
    }
}
