//! The ratios as a picture: one line per row, on a logarithmic scale, with the interval that each holds in 95 of 100 resamplings.

use std::fmt::Write;

use super::report::{compared, number, ordered};
use super::suite::{FLOOR, Results};

/// Where the scale begins and ends.
const SCALE: (f64, f64) = (0.01, 10.0);
const LEFT: f64 = 430.0;
const WIDTH: f64 = 560.0;
const RIGHT: f64 = 150.0;
const LINE: f64 = 18.0;
const TOP: f64 = 78.0;

fn x(ratio: f64) -> f64 {
    let (low, high) = SCALE;
    LEFT + WIDTH * ((ratio.clamp(low, high) / low).ln() / (high / low).ln())
}

fn colour(contender: &str) -> &'static str {
    match contender {
        FLOOR => "#555555",
        "runc" => "#c2571a",
        _ => "#1a6fc2",
    }
}

fn text(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A picture of all rows.
pub fn svg(about: &[(String, String)], results: &Results) -> String {
    let mut lines = String::new();
    let mut y = TOP;
    let mut title = "";
    for row in ordered(results) {
        let Some(ratio) = compared(results, row) else { continue };
        if row.title != title {
            title = row.title;
            y += LINE * 1.6;
            let _ = writeln!(lines, r#"<text x="10" y="{y:.1}" font-weight="bold">{}</text>"#, text(title));
            y += 4.0;
        }
        y += LINE;
        let (middle, colour) = (y - 4.0, colour(row.contender));
        let label = text(&format!("{} / {}", row.meaning, row.contender));
        let _ = writeln!(lines, r#"<text x="{:.1}" y="{y:.1}" text-anchor="end">{label}</text>"#, LEFT - 10.0);
        let (low, high) = (x(ratio.low), x(ratio.high));
        let _ = writeln!(lines, r#"<path d="M{low:.1} {middle:.1}H{high:.1}" stroke="{colour}" stroke-width="5" stroke-opacity="0.4"/>"#);
        let _ = writeln!(lines, r#"<circle cx="{:.1}" cy="{middle:.1}" r="4" fill="{colour}"/>"#, x(ratio.median));
        let value = format!("{}× [{} {}]", number(ratio.median), number(ratio.low), number(ratio.high));
        let _ = writeln!(lines, r#"<text x="{:.1}" y="{y:.1}">{value}</text>"#, LEFT + WIDTH + 10.0);
    }
    let height = y + 2.0 * LINE;
    let mut out = String::new();
    let width = LEFT + WIDTH + RIGHT;
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="white"/>
<text x="10" y="24" font-size="16" font-weight="bold">Time of coracle, as a multiple of each other's (left of 1× is faster)</text>"##
    );
    let machine: Vec<String> = about
        .iter()
        .filter(|(name, _)| name == "kernel" || name == "runc" || name == "crun")
        .map(|(n, v)| text(&format!("{n} {v}")))
        .collect();
    let _ = writeln!(out, r##"<text x="10" y="44" fill="#666">{}</text>"##, machine.join(" · "));
    for tick in [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0] {
        let (at, bold) = (x(tick), if tick == 1.0 { "#222" } else { "#ddd" });
        let _ = writeln!(out, r#"<path d="M{at:.1} {TOP}V{:.0}" stroke="{bold}"/>"#, height - LINE);
        let _ = writeln!(out, r#"<text x="{at:.1}" y="{:.0}" text-anchor="middle">{tick}×</text>"#, TOP - 6.0);
    }
    out + &lines + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_logarithmic_and_bounded() {
        assert_eq!(x(0.001), LEFT);
        assert!((x(10.0) - LEFT - WIDTH).abs() < 1e-9);
        assert!(((x(0.1) - x(0.01)) - (x(1.0) - x(0.1))).abs() < 1e-9);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(text("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
