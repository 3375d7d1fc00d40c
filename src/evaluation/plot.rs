//! Line plots as SVG: axes from 0 to 1, curves with their interval bands, a legend.

use std::fmt::Write as _;

/// A point of a curve with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlotPoint {
    pub x: f64,
    pub y: f64,
    pub low: f64,
    pub high: f64,
}

/// A labelled curve, its points in ascending `x`.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub label: String,
    pub points: Vec<PlotPoint>,
}

/// A plot of values between 0 and 1 over strengths between 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 60.0;
/// Told apart by people who see few colours, too (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7", "#e69f00",
];
/// Dashes beside the colours.
const DASHES: [&str; 6] = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4"];

impl Plot {
    /// The plot as one SVG document.
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\" role=\"img\">"
        );
        let _ = writeln!(svg, "<title>{}</title>", escape(&self.title));
        let _ = writeln!(
            svg,
            "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>"
        );
        let title_x = (LEFT + WIDTH - RIGHT) / 2.0;
        text(
            &mut svg,
            title_x,
            24.0,
            "middle",
            "font-size=\"15\"",
            &self.title,
        );
        self.axes(&mut svg);
        for (index, curve) in self.curves.iter().enumerate() {
            draw(
                &mut svg,
                curve,
                COLOURS[index % COLOURS.len()],
                DASHES[index % DASHES.len()],
            );
        }
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String) {
        let (left, bottom) = (x_pixel(0.0), y_pixel(0.0));
        let (right, top) = (x_pixel(1.0), y_pixel(1.0));
        for fifth in 0..=5 {
            let value = f64::from(fifth) / 5.0;
            let (x, y) = (x_pixel(value), y_pixel(value));
            line(svg, left, y, right, y, "#e5e5e5");
            line(svg, x, bottom, x, bottom + 5.0, "#333333");
            text(svg, left - 9.0, y + 4.0, "end", "", &format!("{value:.1}"));
            text(svg, x, bottom + 20.0, "middle", "", &format!("{value:.1}"));
        }
        line(svg, left, bottom, right, bottom, "#333333");
        line(svg, left, bottom, left, top, "#333333");
        text(
            svg,
            (left + right) / 2.0,
            HEIGHT - 16.0,
            "middle",
            "",
            &self.x_label,
        );
        let (x, y) = (20.0, (top + bottom) / 2.0);
        let turned = format!("transform=\"rotate(-90 {x} {y:.1})\"");
        text(svg, x, y, "middle", &turned, &self.y_label);
    }

    fn legend(&self, svg: &mut String) {
        let x = WIDTH - RIGHT + 16.0;
        for (index, curve) in self.curves.iter().enumerate() {
            let y = TOP + 12.0 + 22.0 * index as f64;
            let colour = COLOURS[index % COLOURS.len()];
            let dashes = DASHES[index % DASHES.len()];
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y} h28\" stroke=\"{colour}\" stroke-width=\"2.5\" \
                 stroke-dasharray=\"{dashes}\" fill=\"none\"/>"
            );
            text(svg, x + 35.0, y + 4.0, "start", "", &curve.label);
        }
    }
}

fn draw(svg: &mut String, curve: &Curve, colour: &str, dashes: &str) {
    if curve.points.is_empty() {
        return;
    }
    let place = |x: f64, y: f64| format!("{:.1},{:.1}", x_pixel(x), y_pixel(y));
    let upper = curve.points.iter().map(|point| place(point.x, point.high));
    let lower = curve
        .points
        .iter()
        .rev()
        .map(|point| place(point.x, point.low));
    let band: Vec<String> = upper.chain(lower).collect();
    let _ = writeln!(
        svg,
        "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.18\"/>",
        band.join(" ")
    );
    let curve: Vec<String> = curve
        .points
        .iter()
        .map(|point| place(point.x, point.y))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\" \
         stroke-dasharray=\"{dashes}\"/>",
        curve.join(" ")
    );
}

fn x_pixel(value: f64) -> f64 {
    LEFT + value * (WIDTH - LEFT - RIGHT)
}

fn y_pixel(value: f64) -> f64 {
    HEIGHT - BOTTOM - value.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
}

fn line(svg: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, more: &str, content: &str) {
    let space = if more.is_empty() { "" } else { " " };
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{space}{more}>{}</text>",
        escape(content)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
