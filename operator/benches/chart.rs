//! Bars as SVG, readable without anything else.

use std::fmt::Write as _;

/// A chart of labelled bars, one below the other.
pub(crate) fn bars(title: &str, points: &[(String, f64)]) -> String {
    let most = points.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = 48 + 22 * points.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    for (row, (label, value)) in points.iter().enumerate() {
        let y = 40 + 22 * row;
        let width = (value / most * 440.0).max(1.0);
        let _ = writeln!(
            svg,
            "<text x=\"200\" y=\"{}\" text-anchor=\"end\">{label}</text>\
             <rect x=\"210\" y=\"{y}\" width=\"{width:.1}\" height=\"16\" fill=\"#3b6ea5\"/>\
             <text x=\"{:.1}\" y=\"{}\">{value:.3}</text>",
            y + 12,
            216.0 + width,
            y + 12
        );
    }
    svg.push_str("</svg>\n");
    svg
}
