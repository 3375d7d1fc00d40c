//! A circuit as a picture that stands alone: no script, nothing from elsewhere, readable on light and dark.
//!
//! Layers are columns. An edge is as wide as its weight is large, blue and whole where the weight is positive, vermilion and
//! dashed where it is negative, and fainter where the task needs it less; a node is filled as its effect is large. Dotted
//! lines are the residual stream. The exact numbers stand in titles, which browsers show under the pointer.

use std::fmt::Write as _;

use super::drawn::{DrawnCircuit, DrawnEdge, short, told_effect, wrapped};
use super::layout::{ATTENTION_ROWS, CircuitLayout, ROWS, Rectangle};
use crate::circuits::circuit::{Circuit, ControlCircuit};
use crate::models::config::TransformerConfig;
use crate::plot::escape;

/// Okabe and Ito's blue, vermilion and orange; on dark their lighter forms.
const STYLE: &str = ".causeway-circuit text{fill:#1c2128;font-family:system-ui,'Segoe UI',Roboto,Helvetica,Arial,\
sans-serif;font-size:12px}\
.causeway-circuit .ground{fill:#ffffff}\
.causeway-circuit .title{font-size:20px;font-weight:600}\
.causeway-circuit .quiet{fill:#59636e}\
.causeway-circuit .small{font-size:11px}\
.causeway-circuit .column{fill:#f5f7f9;stroke:#dde2e8}\
.causeway-circuit .rule{stroke:#dde2e8}\
.causeway-circuit .head{fill:#ffffff;stroke:#aab2bd}\
.causeway-circuit .under{fill:#ffffff}\
.causeway-circuit .node{fill:#f2a900;stroke:#7a5200}\
.causeway-circuit .positive{fill:none;stroke:#0072b2}\
.causeway-circuit .negative{fill:none;stroke:#d55e00;stroke-dasharray:7 4}\
.causeway-circuit .positive-tip{fill:#0072b2}\
.causeway-circuit .negative-tip{fill:#d55e00}\
.causeway-circuit .stream{fill:none;stroke:#7d8794;stroke-width:1.4;stroke-linecap:round;stroke-dasharray:.1 4.2}\
@media (prefers-color-scheme:dark){\
.causeway-circuit text{fill:#e6edf3}\
.causeway-circuit .ground{fill:#0d1117}\
.causeway-circuit .quiet{fill:#9aa5b1}\
.causeway-circuit .column{fill:#151b23;stroke:#2b333d}\
.causeway-circuit .rule{stroke:#2b333d}\
.causeway-circuit .head{fill:#0d1117;stroke:#57606a}\
.causeway-circuit .under{fill:#0d1117}\
.causeway-circuit .node{fill:#8f6200;stroke:#e3b341}\
.causeway-circuit .positive{stroke:#56b4e9}\
.causeway-circuit .negative{stroke:#ff9152}\
.causeway-circuit .positive-tip{fill:#56b4e9}\
.causeway-circuit .negative-tip{fill:#ff9152}\
.causeway-circuit .stream{stroke:#7d8794}}";

const LEFT: f64 = 104.0;
const RIGHT: f64 = 28.0;
const LINE: f64 = 18.0;
const LEAST_WIDTH: f64 = 760.0;
/// Of a character, on average.
const CHARACTER: f64 = 6.1;
const WIDEST: f64 = 6.5;
const NARROWEST: f64 = 1.0;
/// Nothing that others have named is longer.
const LONGEST_TEXT: usize = 1_200;

/// The circuit as one SVG document.
pub fn svg(circuit: &Circuit) -> String {
    draw(&DrawnCircuit::new(circuit, None))
}

/// The same with the heads of queries, keys and values, which `config`, the model's, tells.
pub fn svg_of_model(circuit: &Circuit, config: &TransformerConfig) -> String {
    draw(&DrawnCircuit::new(circuit, Some(config)))
}

fn draw(drawn: &DrawnCircuit) -> String {
    let layout = CircuitLayout::new(drawn);
    let width = (LEFT + layout.width + RIGHT).max(LEAST_WIDTH);
    let columns = ((width - 56.0) / CHARACTER) as usize;
    let mut above = Vec::new();
    for line in header(drawn.record) {
        above.extend(wrapped(&clipped(&line), columns));
    }
    let mut below = wrapped(&clipped(&drawn.record.summary), columns);
    below.push("Point at a node or an edge for its exact numbers.".to_owned());
    if let Some(left_out) = drawn.left_out() {
        below.extend(wrapped(&left_out, columns));
    }
    let top = 52.0 + above.len() as f64 * LINE + 40.0;
    let legend_at = top + layout.height + 34.0;
    let height = legend_at + 62.0 + below.len() as f64 * LINE + 10.0;
    let task = clipped(&drawn.record.task);

    let mut out = String::new();
    // Writing to a string does not fail, here and below.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"causeway-circuit\" width=\"{width:.0}\" \
         height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">"
    );
    let _ = writeln!(
        out,
        "<title>{}</title>",
        escape(&format!(
            "{task}: circuit {} of {}",
            drawn.record.id.as_str(),
            clipped(&drawn.record.model)
        ))
    );
    let _ = writeln!(out, "<style>{STYLE}</style>");
    for (name, class) in [("positive", "positive-tip"), ("negative", "negative-tip")] {
        let _ = writeln!(
            out,
            "<marker id=\"causeway-{name}\" viewBox=\"0 0 10 10\" refX=\"8\" refY=\"5\" markerWidth=\"9\" \
             markerHeight=\"9\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"{class}\" \
             d=\"M0 1L10 5L0 9z\"/></marker>"
        );
    }
    let _ = writeln!(
        out,
        "<rect class=\"ground\" width=\"{width:.0}\" height=\"{height:.0}\"/>"
    );
    text(&mut out, 28.0, 36.0, "start", "title", &task);
    for (index, line) in above.iter().enumerate() {
        let y = 60.0 + index as f64 * LINE;
        text(&mut out, 28.0, y, "start", "quiet", line);
    }
    let spare = (width - LEFT - RIGHT - layout.width).max(0.0) / 2.0;
    frame(&mut out, &layout, top, spare);
    let _ = writeln!(
        out,
        "<g transform=\"translate({:.1} {top:.1})\">",
        LEFT + spare
    );
    content(&mut out, drawn, &layout);
    out.push_str("</g>\n");
    legend(&mut out, drawn, legend_at);
    for (index, line) in below.iter().enumerate() {
        let y = legend_at + 62.0 + index as f64 * LINE;
        text(&mut out, 28.0, y, "start", "", line);
    }
    out.push_str("</svg>\n");
    out
}

/// What the circuit is and does, and its controls.
fn header(record: &Circuit) -> Vec<String> {
    let (figures, controls) = (&record.figures, &record.controls);
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut compared = Vec::new();
    let mut control = |name: &str, found: &Option<ControlCircuit>| {
        if let Some(found) = found {
            let reached = match found.reaches_target {
                true => "",
                false => ", target not reached",
            };
            compared.push(format!("{name} {} nodes{reached}", found.nodes));
        }
    };
    control("shuffled labels", &controls.shuffled_labels);
    control("random model", &controls.random_model);
    control("frozen norms", &controls.frozen_norms);
    if let Some(share) = controls.interchange {
        let random = controls.interchange_random_nodes;
        let random = random.map(|share| format!(" (random nodes {})", percent(share)));
        let random = random.unwrap_or_default();
        compared.push(format!("interchange {}{random}", percent(share)));
    }
    if let Some(correlation) = controls.mean_correlation {
        compared.push(format!("mean correlation {}", short(correlation)));
    }
    let reached = match figures.reaches_target {
        true => "reaches its target of",
        false => "does not reach its target of",
    };
    let mut lines = vec![
        format!(
            "Circuit {} of {}: {} nodes, {} edges; {reached} {} on the pairs that it was chosen on.",
            record.id.as_str(),
            record.model,
            figures.nodes,
            figures.edges,
            short(record.method.target_loss)
        ),
        format!(
            "Task loss {} alone ({} right), {} in the whole model ({}), {} without the circuit ({}).",
            short(figures.task_loss),
            percent(figures.accuracy),
            short(figures.task_loss_whole),
            percent(figures.accuracy_whole),
            short(figures.task_loss_without),
            percent(figures.accuracy_without)
        ),
    ];
    if !compared.is_empty() {
        lines.push(format!("Controls: {}.", compared.join("; ")));
    }
    lines
}

/// Columns with their names, rows with theirs.
fn frame(out: &mut String, layout: &CircuitLayout, top: f64, spare: f64) {
    for (layer, x, width) in &layout.columns {
        let x = LEFT + spare + x;
        let name = format!("layer {layer}");
        text(out, x + width / 2.0, top - 10.0, "middle", "quiet", &name);
        let _ = writeln!(
            out,
            "<rect class=\"column\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"10\"/>",
            layout.height
        );
    }
    let mut named = [false; 2];
    let mut last_of_attention = None;
    for (row, y, height) in &layout.rows {
        let middle = top + y + height / 2.0 + 4.0;
        let is_mlp = usize::from(*row >= ATTENTION_ROWS);
        if !named[is_mlp] {
            named[is_mlp] = true;
            let name = ["attention", "MLP"][is_mlp];
            text(out, 28.0 + spare, middle - 18.0, "start", "", name);
        }
        text(
            out,
            28.0 + spare,
            middle,
            "start",
            "quiet small",
            ROWS[*row],
        );
        match (is_mlp, last_of_attention.take()) {
            (0, _) => last_of_attention = Some(y + height),
            (_, Some(end)) => {
                let between = top + (end + y) / 2.0;
                for (_, x, width) in &layout.columns {
                    let x = LEFT + spare + x;
                    let _ = writeln!(
                        out,
                        "<path class=\"rule\" d=\"M{x:.1} {between:.1}h{width:.1}\"/>"
                    );
                }
            }
            _ => {}
        }
    }
}

/// Heads, links, edges and nodes.
fn content(out: &mut String, drawn: &DrawnCircuit, layout: &CircuitLayout) {
    for (around, name) in &layout.heads {
        let _ = writeln!(
            out,
            "<rect class=\"head\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"6\"/>",
            around.x, around.y, around.width, around.height
        );
        // Below its nodes, where fewer edges run than above.
        let (x, y) = (around.x + 7.0, around.bottom() - 5.0);
        text(out, x, y, "start", "quiet small", name);
    }
    for &(from, to) in &drawn.links {
        let (source, target) = (&drawn.nodes[from], &drawn.nodes[to]);
        let told = format!(
            "{}:{} → {}:{}, through the residual stream",
            source.record.node.as_str(),
            source.record.channel,
            target.record.node.as_str(),
            target.record.channel
        );
        let path = match source.at.layer == target.at.layer {
            true => down(layout.nodes[from], layout.nodes[to], 0.0),
            false => across(layout.nodes[from], layout.nodes[to]),
        };
        let _ = writeln!(
            out,
            "<path class=\"stream\" d=\"{path}\"><title>{}</title></path>",
            escape(&told)
        );
    }
    // The widest first, so that none hides another.
    let mut edges: Vec<&DrawnEdge> = drawn.edges.iter().collect();
    edges.sort_by(|a, b| drawn.weight_share(b).total_cmp(&drawn.weight_share(a)));
    for edge in edges {
        let record = edge.record;
        let class = match record.weight < 0.0 {
            true => "negative",
            false => "positive",
        };
        let told = format!(
            "{}:{} → {}:{}\nweight {}\neffect {} (rise of the task loss without it)",
            record.from.node.as_str(),
            record.from.channel,
            record.to.node.as_str(),
            record.to.channel,
            record.weight,
            told_effect(record.effect)
        );
        let _ = writeln!(
            out,
            "<path class=\"{class}\" d=\"{}\" stroke-width=\"{:.2}\" stroke-opacity=\"{:.2}\" \
             marker-end=\"url(#causeway-{class})\"><title>{}</title></path>",
            down(layout.nodes[edge.from], layout.nodes[edge.to], 3.0),
            NARROWEST + (WIDEST - NARROWEST) * drawn.weight_share(edge),
            0.35 + 0.6 * drawn.edge_share(edge),
            lines(&told)
        );
    }
    for (index, node) in drawn.nodes.iter().enumerate() {
        let record = node.record;
        let mut told = format!("{}:{}", record.node.as_str(), record.channel);
        if let Some(head) = node.head {
            let _ = write!(told, ", head {head}");
        }
        let _ = write!(
            told,
            "\neffect {} (rise of the task loss when it is held too)\nin the whole model {}\npresented {}, \
             counterfactual {}\nheld at {}\nreference text: mean {}, std {}, {} to {}, active at {} of tokens\n",
            told_effect(record.effect),
            told_effect(record.effect_in_whole_model),
            record.presented,
            record.counterfactual,
            record.held_at,
            record.reference.mean,
            record.reference.std,
            record.reference.min,
            record.reference.max,
            record.reference.density
        );
        match record.correlation {
            Some(correlation) => {
                let _ = write!(told, "correlation with the whole model {correlation}");
            }
            None => told.push_str("no correlation: it never changes"),
        }
        let place = layout.nodes[index];
        let share = drawn.node_share(node);
        let _ = writeln!(out, "<g><title>{}</title>", lines(&told));
        pill(out, place, share);
        let (x, y) = place.middle();
        text(out, x, y + 4.0, "middle", "small", &layout.labels[index]);
        out.push_str("</g>\n");
    }
}

/// A node's shape, filled by its share of the largest effect.
fn pill(out: &mut String, place: Rectangle, share: f64) {
    let shape = format!(
        "x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"7\"",
        place.x, place.y, place.width, place.height
    );
    let _ = writeln!(
        out,
        "<rect class=\"under\" {shape}/><rect class=\"node\" {shape} fill-opacity=\"{:.2}\" stroke-width=\"{:.2}\"/>",
        0.06 + 0.94 * share,
        1.0 + 1.2 * share
    );
}

/// From a node to one below it.
fn down(from: Rectangle, to: Rectangle, tip: f64) -> String {
    let ((x1, _), (x2, _)) = (from.middle(), to.middle());
    let (y1, y2) = (from.bottom(), to.y - tip);
    let bend = ((y2 - y1).abs() * 0.45).max(14.0);
    format!(
        "M{x1:.1} {y1:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}",
        y1 + bend,
        y2 - bend
    )
}

/// From a node to one in a later column.
fn across(from: Rectangle, to: Rectangle) -> String {
    let ((_, y1), (_, y2)) = (from.middle(), to.middle());
    let (x1, x2) = (from.right(), to.x);
    let bend = ((x2 - x1).abs() * 0.5).max(30.0);
    format!(
        "M{x1:.1} {y1:.1}C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}",
        x1 + bend,
        x2 - bend
    )
}

/// What the signs mean.
fn legend(out: &mut String, drawn: &DrawnCircuit, y: f64) {
    let mut x = 28.0;
    for (class, name) in [
        ("positive", "positive weight"),
        ("negative", "negative weight"),
    ] {
        let _ = writeln!(
            out,
            "<path class=\"{class}\" d=\"M{x} {y:.1}h44\" stroke-width=\"3\" marker-end=\"url(#causeway-{class})\"/>"
        );
        text(out, x + 54.0, y + 4.0, "start", "small", name);
        x += 160.0;
    }
    for (share, at) in [(0.0, 0.0), (0.5, 16.0), (1.0, 32.0)] {
        let _ = writeln!(
            out,
            "<path class=\"positive\" d=\"M{:.1} {:.1}v14\" stroke-width=\"{:.2}\"/>",
            x + at + 3.0,
            y - 7.0,
            NARROWEST + (WIDEST - NARROWEST) * share
        );
    }
    let widths = format!(
        "weight by magnitude, up to {}",
        short(drawn.largest_weight())
    );
    text(out, x + 48.0, y + 4.0, "start", "small", &widths);
    let (mut x, y) = (28.0, y + 28.0);
    let _ = writeln!(out, "<path class=\"stream\" d=\"M{x} {y:.1}h44\"/>");
    text(
        out,
        x + 54.0,
        y + 4.0,
        "start",
        "small",
        "residual stream (no weight)",
    );
    x += 232.0;
    for (index, share) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        let place = Rectangle {
            x: x + 30.0 * index as f64,
            y: y - 8.0,
            width: 26.0,
            height: 16.0,
        };
        pill(out, place, share);
    }
    let effects = format!(
        "effect of a node by magnitude, up to {} nats",
        short(drawn.largest_effect())
    );
    text(out, x + 96.0, y + 4.0, "start", "small", &effects);
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, class: &str, content: &str) {
    let class = match class {
        "" => String::new(),
        class => format!(" class=\"{class}\""),
    };
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{}</text>",
        escape(content)
    );
}

/// Escaped, its lines kept.
fn lines(told: &str) -> String {
    let lines: Vec<String> = told.lines().map(escape).collect();
    lines.join("\n")
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::drawing::test_circuit::{large, quotes};
    use crate::features::test_pair::random_pair;

    /// The elements of a document, in order, each with what stands inside its tag; panics where they do not nest.
    fn elements(svg: &str) -> Vec<String> {
        let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), svg);
        while let Some(start) = rest.find('<') {
            let between = &rest[..start];
            assert!(!between.contains('>'), "{between}");
            let end = start + rest[start..].find('>').expect("an end");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split([' ', '/']).next().unwrap().to_owned();
            if !tag.ends_with('/') {
                open.push(name);
            }
            found.push(tag.to_owned());
        }
        assert!(open.is_empty(), "{open:?}");
        found
    }

    fn of_class(elements: &[String], class: &str) -> usize {
        let class = format!("class=\"{class}\"");
        let lines = elements.iter().filter(|element| element.contains(&class));
        lines.filter(|element| element.starts_with("path")).count()
    }

    #[test]
    fn every_part_is_drawn_once_with_its_numbers() {
        let circuit = quotes();
        let picture = svg(&circuit);
        let elements = elements(&picture);
        let nodes = elements.iter().filter(|element| *element == "g").count();
        assert_eq!(nodes, circuit.nodes.len());
        let edges = elements
            .iter()
            .filter(|element| element.contains("stroke-opacity"));
        assert_eq!(edges.count(), circuit.edges.len());
        // One more of each in the legend, and three to tell the widths.
        assert_eq!(of_class(&elements, "negative"), 3 + 1);
        assert_eq!(of_class(&elements, "positive"), 6 + 1 + 3);
        assert_eq!(of_class(&elements, "stream"), 2 + 1);
        for edge in &circuit.edges {
            let told = format!(
                "\nweight {}\neffect {}",
                edge.weight,
                told_effect(edge.effect)
            );
            assert!(picture.contains(&told), "{told}");
        }
        assert!(picture.contains("0.mlp.resid_delta:460\neffect 0.95"));
        for forbidden in [
            "<script", "href", "@import", "url(http", "data:", "<image", "onload",
        ] {
            assert!(!picture.contains(forbidden), "{forbidden}");
        }
        assert!(picture.contains("prefers-color-scheme:dark"));
        let config = random_pair(1).sparse.config;
        assert!(svg_of_model(&circuit, &config).contains(">head 1</text>"));
    }

    #[test]
    fn whatever_things_are_called_the_document_is_one() {
        let mut circuit = quotes();
        circuit.task = "</title><script>alert(1)</script>".to_owned();
        circuit.model = "\"&'<\u{0}".to_owned();
        circuit.summary = "x ".repeat(5_000) + "]]>";
        let odd = svg(&circuit);
        let scripts = elements(&odd);
        assert!(scripts.iter().all(|element| !element.starts_with("script")));
        assert!(odd.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(!odd.contains('\u{0}'));
        assert!(odd.len() < 2 * svg(&quotes()).len());
    }

    #[test]
    fn a_large_circuit_is_bounded_and_says_so() {
        let picture = svg(&large(3_000, 20_000));
        let parts = elements(&picture);
        assert_eq!(parts.iter().filter(|element| *element == "g").count(), 400);
        assert!(picture.contains("Not drawn: 2600 nodes"), "{picture}");
        assert!(picture.len() < 4 << 20);
    }
}
