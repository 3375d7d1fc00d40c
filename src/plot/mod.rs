//! Line plots as SVG: two axes, curves with their bands, a legend; alone or as the panels of a grid.
//!
//! A plot is plain data in the units of what it shows. It becomes one document ([`Plot::to_svg`]) or one of several in
//! a document ([`grid`]); [`notice`] is the document that stands in where there is nothing to draw. All text is
//! escaped, whoever named it, and points that are not finite are left out, so that every document can be read.

pub mod axis;

use std::fmt::Write as _;

pub use axis::Axis;

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

/// Curves over one pair of axes; nothing stands beside an axis whose label is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub curves: Vec<Curve>,
}

/// The measures of a chart in SVG's pixels: its size, and the margins around what the axes enclose.
#[derive(Debug, Clone, Copy)]
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    title_size: u32,
    /// Of curves.
    stroke: f64,
    legend: bool,
}

/// A plot that is a document of its own; the legend stands in the right margin.
const ALONE: Frame = Frame {
    width: 720.0,
    height: 460.0,
    left: 70.0,
    right: 190.0,
    top: 44.0,
    bottom: 60.0,
    title_size: 15,
    stroke: 2.5,
    legend: true,
};
/// A panel of one curve, which its title names.
const PANEL: Frame = Frame {
    width: 400.0,
    height: 270.0,
    left: 70.0,
    right: 30.0,
    top: 40.0,
    bottom: 56.0,
    title_size: 14,
    stroke: 1.5,
    legend: false,
};
/// A panel of several curves.
const PANEL_WITH_LEGEND: Frame = Frame {
    right: 124.0,
    legend: true,
    ..PANEL
};
/// What a grid's title takes above the panels.
const HEADER: f64 = 40.0;
/// What a digit of a tick's label takes, with its share of the gap to the next label.
const DIGIT: f64 = 8.0;
/// Told apart by people who see few colours, too (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#999999", "#009e73", "#cc79a7", "#e69f00",
];
/// Dashes beside the colours.
const DASHES: [&str; 6] = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4"];

impl Plot {
    /// The plot as one SVG document.
    pub fn to_svg(&self) -> String {
        document(&self.title, ALONE.width, ALONE.height, |svg| {
            self.draw(svg, ALONE);
        })
    }

    fn draw(&self, svg: &mut String, frame: Frame) {
        let chart = Chart { plot: self, frame };
        let title_x = (frame.left + frame.width - frame.right) / 2.0;
        let size = format!("font-size=\"{}\"", frame.title_size);
        text(svg, title_x, 24.0, "middle", &size, &self.title);
        chart.axes(svg);
        for (index, curve) in self.curves.iter().enumerate() {
            chart.curve(svg, curve, index);
        }
        if frame.legend {
            chart.legend(svg);
        }
    }
}

/// Plots side by side in so many columns, row by row, as one SVG document below a title.
pub fn grid(title: &str, plots: &[Plot], columns: usize) -> String {
    let columns = columns.clamp(1, plots.len().max(1));
    let rows = plots.len().div_ceil(columns);
    let width = columns as f64 * PANEL.width;
    let height = HEADER + rows as f64 * PANEL.height;
    document(title, width, height, |svg| {
        text(svg, width / 2.0, 26.0, "middle", "font-size=\"17\"", title);
        for (index, plot) in plots.iter().enumerate() {
            let x = (index % columns) as f64 * PANEL.width;
            let y = HEADER + (index / columns) as f64 * PANEL.height;
            let frame = match plot.curves.len() {
                0 | 1 => PANEL,
                _ => PANEL_WITH_LEGEND,
            };
            // Writing to a string does not fail, here and below.
            let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
            plot.draw(svg, frame);
            svg.push_str("</g>\n");
        }
    })
}

/// A document of a panel's size that says something in place of curves.
pub fn notice(title: &str, words: &str) -> String {
    let (width, height) = (PANEL.width, PANEL.height);
    document(title, width, height, |svg| {
        let middle = width / 2.0;
        text(svg, middle, 26.0, "middle", "font-size=\"17\"", title);
        let grey = "fill=\"#666666\"";
        text(svg, middle, height / 2.0, "middle", grey, words);
    })
}

fn document(title: &str, width: f64, height: f64, content: impl FnOnce(&mut String)) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\" role=\"img\">"
    );
    let _ = writeln!(svg, "<title>{}</title>", escape(title));
    let _ = writeln!(
        svg,
        "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    content(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// A plot within its frame.
struct Chart<'a> {
    plot: &'a Plot,
    frame: Frame,
}

impl Chart<'_> {
    fn axes(&self, svg: &mut String) {
        let Frame {
            width,
            height,
            left,
            top,
            ..
        } = self.frame;
        let (right, bottom) = (width - self.frame.right, height - self.frame.bottom);
        let (across, up) = (&self.plot.x, &self.plot.y);
        for (&tick, label) in up.ticks.iter().zip(up.tick_labels()) {
            let y = self.y_pixel(tick);
            line(svg, left, y, right, y, "#e5e5e5");
            text(svg, left - 9.0, y + 4.0, "end", "", &label);
        }
        let labels = across.tick_labels();
        let longest = labels.iter().map(String::len).max().unwrap_or(0);
        let needed = longest as f64 * DIGIT * (labels.len() as f64 - 1.0);
        let every = (needed / (right - left)).ceil().max(1.0) as usize;
        for (index, (&tick, label)) in across.ticks.iter().zip(&labels).enumerate() {
            let x = self.x_pixel(tick);
            line(svg, x, bottom, x, bottom + 5.0, "#333333");
            // Where all of them would run into each other, only some ticks are labelled.
            if index.is_multiple_of(every) {
                text(svg, x, bottom + 20.0, "middle", "", label);
            }
        }
        line(svg, left, bottom, right, bottom, "#333333");
        line(svg, left, bottom, left, top, "#333333");
        if !across.label.is_empty() {
            let (x, y) = ((left + right) / 2.0, height - 16.0);
            text(svg, x, y, "middle", "", &across.label);
        }
        if !up.label.is_empty() {
            let (x, y) = (20.0, (top + bottom) / 2.0);
            let turned = format!("transform=\"rotate(-90 {x} {y:.1})\"");
            text(svg, x, y, "middle", &turned, &up.label);
        }
    }

    fn curve(&self, svg: &mut String, curve: &Curve, index: usize) {
        let (colour, dashes) = style(index);
        let points: Vec<PlotPoint> = curve
            .points
            .iter()
            .filter(|point| {
                [point.x, point.y, point.low, point.high]
                    .iter()
                    .all(|of| of.is_finite())
            })
            .copied()
            .collect();
        let place = |x: f64, y: f64| format!("{:.1},{:.1}", self.x_pixel(x), self.y_pixel(y));
        if points
            .iter()
            .any(|point| point.low != point.y || point.high != point.y)
        {
            let upper = points.iter().map(|point| place(point.x, point.high));
            let lower = points.iter().rev().map(|point| place(point.x, point.low));
            let band: Vec<String> = upper.chain(lower).collect();
            let _ = writeln!(
                svg,
                "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.18\"/>",
                band.join(" ")
            );
        }
        // A line needs two points to be seen.
        if let [only] = points[..] {
            let (x, y) = (self.x_pixel(only.x), self.y_pixel(only.y));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        if points.len() > 1 {
            let middle: Vec<String> = points.iter().map(|point| place(point.x, point.y)).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{}\" \
                 stroke-dasharray=\"{dashes}\"/>",
                middle.join(" "),
                self.frame.stroke
            );
        }
    }

    fn legend(&self, svg: &mut String) {
        let x = self.frame.width - self.frame.right + 16.0;
        for (index, curve) in self.plot.curves.iter().enumerate() {
            let y = self.frame.top + 12.0 + 22.0 * index as f64;
            let (colour, dashes) = style(index);
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y} h28\" stroke=\"{colour}\" stroke-width=\"{}\" \
                 stroke-dasharray=\"{dashes}\" fill=\"none\"/>",
                self.frame.stroke
            );
            text(svg, x + 35.0, y + 4.0, "start", "", &curve.label);
        }
    }

    fn x_pixel(&self, value: f64) -> f64 {
        let Frame {
            width, left, right, ..
        } = self.frame;
        left + self.plot.x.share(value) * (width - left - right)
    }

    fn y_pixel(&self, value: f64) -> f64 {
        let Frame {
            height,
            top,
            bottom,
            ..
        } = self.frame;
        height - bottom - self.plot.y.share(value) * (height - top - bottom)
    }
}

fn style(index: usize) -> (&'static str, &'static str) {
    (COLOURS[index % COLOURS.len()], DASHES[index % DASHES.len()])
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

/// As text or as an attribute's value; what XML has no way to write becomes U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            '\t' | '\n' | '\r' => escaped.push(' '),
            control if control < ' ' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = include_str!("../../bridges/tinypython/quote_type.csv");
    const SVG: &str = include_str!("../../bridges/tinypython/quote_type.svg");

    fn point(x: f64, y: f64) -> PlotPoint {
        PlotPoint {
            x,
            y,
            low: y,
            high: y,
        }
    }

    fn plot(title: &str, curves: &[(&str, &[(f64, f64)])]) -> Plot {
        let curves: Vec<Curve> = curves
            .iter()
            .map(|(label, points)| Curve {
                label: (*label).to_owned(),
                points: points.iter().map(|&(x, y)| point(x, y)).collect(),
            })
            .collect();
        let all = || curves.iter().flat_map(|curve| &curve.points);
        Plot {
            title: title.to_owned(),
            x: Axis::fitting("step", all().map(|point| point.x)),
            y: Axis::fitting("", all().map(|point| point.y)),
            curves,
        }
    }

    fn is_balanced(svg: &str) -> bool {
        let paired = |name: &str| {
            let opened = svg.matches(&format!("<{name}>")).count()
                + svg.matches(&format!("<{name} ")).count();
            opened == svg.matches(&format!("</{name}>")).count()
        };
        svg.starts_with("<svg ")
            && svg.ends_with("</svg>\n")
            && ["svg", "title", "text", "g"].into_iter().all(paired)
    }

    #[test]
    fn the_shipped_curve_is_drawn_as_it_was() {
        let mut curves: Vec<Curve> = Vec::new();
        for row in CSV.lines().skip(1) {
            let cells: Vec<&str> = row.split(',').collect();
            let number = |cell: usize| cells[cell].parse::<f64>().expect("a number");
            let label = cells[0].replace('_', " ");
            if curves.last().is_none_or(|curve| curve.label != label) {
                let points = Vec::new();
                curves.push(Curve { label, points });
            }
            let curve = curves.last_mut().expect("a curve");
            curve.points.push(PlotPoint {
                x: number(1),
                y: number(2),
                low: number(3),
                high: number(4),
            });
        }
        let plot = Plot {
            title: "quote_type on single_double_quote".to_owned(),
            x: Axis::unit("strength"),
            y: Axis::unit("two-way probability of the counterfactual's token"),
            curves,
        };
        let sorted = |svg: &str| {
            let mut lines: Vec<String> = svg.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&plot.to_svg()), sorted(SVG));
    }

    #[test]
    fn a_grid_places_every_plot_once() {
        let plots = [
            plot("a", &[("one", &[(0.0, 1.0), (1.0, 2.0)])]),
            plot("b", &[("one", &[(0.0, 1.0)]), ("two", &[(0.0, 1.0)])]),
            plot("c", &[]),
        ];
        let svg = grid("all", &plots, 2);
        assert!(is_balanced(&svg), "{svg}");
        for place in ["(0 40)", "(400 40)", "(0 310)"] {
            assert_eq!(svg.matches(&format!("translate{place}")).count(), 1);
        }
        assert!(svg.contains("viewBox=\"0 0 800 580\""));
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 2);
        // Only the panel of two has a legend.
        assert_eq!(svg.matches(">one</text>").count(), 1);
        assert_eq!(svg.matches(">two</text>").count(), 1);
        assert!(is_balanced(&grid("none", &[], 0)));
    }

    #[test]
    fn labels_of_long_numbers_stand_apart() {
        let points: &[(f64, f64)] = &[(0.0, 0.0), (1e6, 1.0)];
        let svg = grid("a", &[plot("b", &[("one", points), ("two", points)])], 1);
        assert!(svg.contains(">800000<") && !svg.contains(">1000000<"));
        let svg = grid("a", &[plot("b", &[("one", points)])], 1);
        assert!(svg.contains(">800000<") && svg.contains(">1000000<"));
    }

    #[test]
    fn a_band_is_drawn_where_there_is_one() {
        let mut flat = plot("a", &[("one", &[(0.0, 1.0), (1.0, 2.0)])]);
        assert!(!flat.to_svg().contains("<polygon"));
        flat.curves[0].points[0].high = 1.5;
        assert_eq!(flat.to_svg().matches("<polygon").count(), 1);
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let points = [
            (0.0, 1.0),
            (1.0, f64::NAN),
            (2.0, f64::INFINITY),
            (3.0, 2.0),
        ];
        let svg = plot("a", &[("one", &points)]).to_svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("<polyline"));
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let name = "a<b>\"&\u{1}\n</text><script>";
        for svg in [
            plot(name, &[(name, &[(0.0, 1.0)])]).to_svg(),
            grid(name, &[plot(name, &[])], 3),
            notice(name, name),
        ] {
            assert!(is_balanced(&svg), "{svg}");
            assert!(!svg.contains("<script") && !svg.contains('\u{1}'));
            assert!(svg.contains("a&lt;b&gt;&quot;&amp;\u{fffd} &lt;/text&gt;"));
        }
    }
}
