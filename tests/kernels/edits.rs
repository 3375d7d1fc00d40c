//! Edits of rows, against what operations do to a feature's values.

use causeway::features::group::Group;
use causeway::interventions::operation::{Action, norm};
use causeway::interventions::subject::{Direction, Subject};
use causeway::models::location::{Location, Site};

use super::emulation::{Emulation, Launch};
use super::values::{Element, Noise, assert_alone_as_in_batch, assert_near, bytes_of_rows, picked};

const WIDTH: usize = 37;
const SOURCE_WIDTH: usize = 50;
/// Of a feature, at most.
const CHANNELS: usize = 5;

#[derive(Clone, Copy, PartialEq)]
enum Read {
    Row,
    Source,
    /// A source that is made a copy of the row first.
    Copy,
    Nowhere,
}

#[derive(Clone, Copy, PartialEq)]
enum Write {
    Itself = 0,
    Columns = 1,
    Later = 2,
}

#[derive(Clone)]
enum What {
    Operation(Action),
    ReadOnly,
    Given(Vec<f32>),
}

#[derive(Clone)]
struct Edit {
    subject: Subject,
    what: What,
    strength: f64,
    counterfactual: Vec<f32>,
    read: Read,
    write: Write,
    columns: Vec<Vec<f32>>,
    factor: f32,
    /// Whether the root mean square of the first numbers of the source multiplies the columns too.
    scaled: bool,
    control: Option<Vec<f32>>,
}

/// So many of a source's numbers are a stream.
const STREAM: usize = 11;

impl Edit {
    /// One of the kinds that there are, which `kind` goes through.
    fn new(noise: &mut Noise, kind: usize) -> Self {
        let place = Site::before_attention(0, 1);
        let count = match kind % 12 {
            1 => 1,
            9 => 2,
            _ => 1 + noise.below(CHANNELS),
        };
        let mut channels: Vec<usize> = (0..WIDTH).collect();
        let channels: Vec<usize> = (0..count)
            .map(|_| channels.swap_remove(noise.below(channels.len())))
            .collect();
        let weights = noise.many(count);
        let length = norm(&weights);
        let group = Group {
            place: Location::Site(place),
            weights: match count {
                1 => vec![f64::from(weights[0].signum())],
                _ => weights
                    .iter()
                    .map(|weight| f64::from(weight / length))
                    .collect(),
            },
            channels,
        };
        let number = f64::from(noise.one());
        let each: Vec<f64> = noise.many(count).iter().map(|&x| f64::from(x)).collect();
        let action = match kind % 12 {
            0 => Action::Add(number),
            1 | 2 => Action::Set(number),
            3 => Action::Clamp {
                min: -0.1,
                max: 0.2,
            },
            4 => Action::Scale(number),
            5 => Action::Ablate(noise.many(count)),
            6 => Action::AddEach(each),
            7 => Action::ClampEach(each.iter().map(|x| (x - 0.3, x + 0.1)).collect()),
            8 => Action::ScaleEach(number),
            9 => Action::Swap,
            10 => Action::Patch { stream: 0 },
            _ => Action::AddResidual(0.1 * number),
        };
        // Directions have operations of one number alone; the last of them is theirs.
        let is_direction = kind % 12 == 11 || (kind % 12 < 5 && noise.below(3) == 0);
        let vector = noise.many(WIDTH);
        let subject = match is_direction {
            true => Subject::Direction(Direction {
                site: place,
                squared_norm: vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum(),
                vector,
            }),
            false => Subject::Channels(group),
        };
        let write = match noise.below(3) {
            _ if is_direction => Write::Itself,
            0 => Write::Itself,
            1 => Write::Columns,
            _ => Write::Later,
        };
        let unit = noise.many(WIDTH);
        let unit_length = norm(&unit);
        let control = (noise.below(4) == 0).then(|| unit.iter().map(|x| x / unit_length).collect());
        let read = match noise.below(3) {
            0 if is_direction && control.is_some() => Read::Copy,
            _ if is_direction => Read::Row,
            // What is written where it was read goes on from a copy in a control arm.
            1 if write == Write::Itself && control.is_some() => Read::Source,
            _ if write == Write::Itself && control.is_some() => Read::Copy,
            _ if write == Write::Itself => Read::Row,
            0 if matches!(action, Action::Add(_)) => Read::Nowhere,
            1 => Read::Row,
            _ => Read::Source,
        };
        let what = match noise.below(12) {
            0 if read != Read::Nowhere => What::ReadOnly,
            1 if !is_direction => What::Given(noise.many(WIDTH)),
            _ => What::Operation(action),
        };
        Edit {
            subject,
            what,
            strength: [1.0, 0.5, 0.0][noise.below(3)],
            counterfactual: noise.many(SOURCE_WIDTH),
            read,
            write,
            columns: (0..count).map(|_| noise.many(WIDTH)).collect(),
            factor: 1.0 + noise.one(),
            scaled: noise.below(2) == 0,
            control,
        }
    }

    /// What interventions/row_edits.rs does; the outcome's first three numbers.
    fn carry_out(&self, row: &mut [f32], source: &mut [f32], later: &mut [f32]) -> [f32; 3] {
        let is_later = self.write == Write::Later;
        if self.read == Read::Copy && !matches!(self.what, What::Given(_)) {
            source[..WIDTH].copy_from_slice(row);
        }
        let mut outcome = [0.0; 3];
        let delta = match &self.what {
            What::ReadOnly => {
                let values = match self.read {
                    Read::Source | Read::Copy => source,
                    Read::Row | Read::Nowhere => row,
                };
                let value = self.subject.read(values);
                return [value, value, 0.0];
            }
            What::Given(delta) => delta.clone(),
            What::Operation(action) => {
                let partner = Some(self.counterfactual.as_slice());
                let mut factor = self.factor;
                let in_place = self.write == Write::Itself && self.control.is_none();
                let is_direction = matches!(self.subject, Subject::Direction(_));
                let moved = match self.read {
                    Read::Nowhere => self.subject.known_move(action, self.strength),
                    // A copy is as long as the row.
                    Read::Copy => {
                        self.subject
                            .apply(action, &mut source[..WIDTH], partner, self.strength)
                    }
                    Read::Source => {
                        self.subject
                            .apply(action, &mut *source, partner, self.strength)
                    }
                    Read::Row if in_place => {
                        self.subject.apply(action, row, partner, self.strength)
                    }
                    Read::Row => {
                        self.subject
                            .apply(action, &mut row.to_vec(), partner, self.strength)
                    }
                };
                outcome = [moved.before, moved.after, moved.norm()];
                if self.scaled {
                    let squares = source[..STREAM].iter().map(|&x| f64::from(x).powi(2));
                    factor *= (squares.sum::<f64>() / STREAM as f64).sqrt() as f32;
                }
                if in_place {
                    return outcome;
                }
                if is_direction {
                    moved.change
                } else if self.write == Write::Itself {
                    // Only its length matters: the control takes its place.
                    let mut delta = vec![0.0; WIDTH];
                    delta[0] = moved.norm();
                    delta
                } else {
                    let mut delta = vec![0.0; WIDTH];
                    for (column, change) in self.columns.iter().zip(&moved.change) {
                        for (sum, value) in delta.iter_mut().zip(column) {
                            *sum += change * factor * value;
                        }
                    }
                    delta
                }
            }
        };
        outcome[2] = norm(&delta);
        let to = if is_later { later } else { row };
        if outcome[2] != 0.0 {
            for d in 0..WIDTH {
                to[d] += match &self.control {
                    Some(unit) => outcome[2] * unit[d],
                    None => delta[d],
                };
            }
        }
        outcome
    }
}

/// The kernel's tables.
#[derive(Default)]
struct Tables {
    starts: Vec<i32>,
    edits: Vec<u8>,
    channels: Vec<i32>,
    weights: Vec<f64>,
    operands: Vec<f64>,
    columns: Vec<f32>,
}

impl Tables {
    fn column(&mut self, column: &[f32]) -> i32 {
        self.columns.extend(column);
        (self.columns.len() / WIDTH) as i32 - 1
    }

    fn push(&mut self, edit: &Edit, line: usize) {
        let (mut value, mut bound, mut squared_norm) = (0.0, 0.0, 0.0);
        let first_channel = self.channels.len();
        let mut column;
        match &edit.subject {
            Subject::Direction(direction) => {
                squared_norm = direction.squared_norm;
                column = self.column(&direction.vector);
            }
            Subject::Channels(group) | Subject::OwnChannels(group) => {
                self.channels
                    .extend(group.channels.iter().map(|&channel| channel as i32));
                self.weights.extend(&group.weights);
                for own in &edit.columns {
                    self.column(own);
                }
                column = (self.columns.len() / WIDTH - edit.columns.len()) as i32;
            }
        }
        let mut operands: Vec<(f64, f64)> = Vec::new();
        let operation = match &edit.what {
            What::ReadOnly => 10,
            What::Given(delta) => {
                column = self.column(delta);
                11
            }
            What::Operation(action) => match action {
                Action::Add(add) => {
                    value = *add;
                    0
                }
                Action::AddResidual(add) => {
                    value = *add;
                    1
                }
                Action::Set(to) => {
                    value = *to;
                    2
                }
                Action::Clamp { min, max } => {
                    (value, bound) = (*min, *max);
                    3
                }
                Action::Scale(by) => {
                    value = *by;
                    4
                }
                Action::Ablate(to) => {
                    operands = to.iter().map(|&to| (f64::from(to), 0.0)).collect();
                    5
                }
                Action::Patch { .. } => {
                    let partner = |&channel: &i32| f64::from(edit.counterfactual[channel as usize]);
                    let own = self.channels[first_channel..].iter();
                    operands = own.map(|channel| (partner(channel), 0.0)).collect();
                    5
                }
                Action::AddEach(by) => {
                    operands = by.iter().map(|&by| (by, 0.0)).collect();
                    6
                }
                Action::ClampEach(bounds) => {
                    operands = bounds.clone();
                    7
                }
                Action::ScaleEach(by) => {
                    value = *by;
                    8
                }
                Action::Swap => 9,
            },
        };
        let count = self.channels.len() - first_channel;
        operands.resize(count, (0.0, 0.0));
        self.operands
            .extend(operands.iter().flat_map(|&(one, other)| [one, other]));
        let control = edit
            .control
            .as_ref()
            .map_or(-1, |control| self.column(control));
        let source = match edit.read {
            Read::Row => -1,
            Read::Nowhere => -2,
            Read::Source | Read::Copy => line as i32,
        };
        for number in [edit.strength, value, bound, squared_norm] {
            self.edits.extend(number.to_le_bytes());
        }
        let (write, first, later) = (edit.write as i32, first_channel as i32, line as i32);
        for number in [
            operation,
            write,
            source,
            first,
            count as i32,
            column,
            control,
            later,
        ] {
            self.edits.extend(number.to_le_bytes());
        }
        self.edits.extend(edit.factor.to_le_bytes());
        let stream = if edit.scaled { line as i32 } else { -1 };
        let fills = i32::from(edit.read == Read::Copy && !matches!(edit.what, What::Given(_)));
        for number in [stream, STREAM as i32, fills] {
            self.edits.extend(number.to_le_bytes());
        }
    }
}

struct Edited<E> {
    rows: Vec<E>,
    sources: Vec<f32>,
    later: Vec<f32>,
    outcomes: Vec<f32>,
}

/// Edits line l's row, number `rows[l]` of the place.
fn edited<E: Element>(
    emulation: &mut Emulation,
    x: &[E],
    sources: &[f32],
    rows: &[i32],
    lines: &[&[Edit]],
) -> Edited<E> {
    let mut tables = Tables::default();
    tables.starts.push(0);
    let mut count = 0;
    for (line, edits) in lines.iter().enumerate() {
        for edit in *edits {
            tables.push(edit, line);
        }
        count += edits.len();
        tables.starts.push(count as i32);
    }
    let launch = Launch::new(format!("row_edits_{}", E::SUFFIX), [lines.len(), 1, 1])
        .shared(12 * CHANNELS + 4 * WIDTH)
        .changed(x)
        .changed(sources)
        .input(rows)
        .input(&tables.starts)
        .input(&tables.edits)
        .input(&tables.channels)
        .input(&tables.weights)
        .input(&tables.operands)
        .input(&tables.columns)
        .changed(&vec![0f32; lines.len() * WIDTH])
        .changed(&vec![f32::NAN; 4 * count])
        .count(WIDTH)
        .count(SOURCE_WIDTH)
        .count(CHANNELS);
    let mut left = emulation.run(&launch);
    Edited {
        rows: left.take(),
        sources: left.take(),
        later: left.take(),
        outcomes: left.take(),
    }
}

pub fn row_edits<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(9);
    for (lines, most) in [(1, 1), (257, 1), (64, 4)] {
        // Lines and rows are in different orders, and some rows have no edits.
        let n_rows = lines + 5;
        let x = E::all(&noise.many(n_rows * WIDTH));
        let sources = noise.many(lines * SOURCE_WIDTH);
        let all: Vec<Vec<Edit>> = (0..lines)
            .map(|line| {
                let count = 1 + noise.below(most);
                (0..count)
                    .map(|n| Edit::new(&mut noise, line + 7 * n))
                    .collect()
            })
            .collect();
        let rows: Vec<i32> = (0..lines)
            .map(|line| match line % 16 {
                15 => -1,
                _ => (n_rows - 1 - line) as i32,
            })
            .collect();
        let (mut expected, mut expected_sources) = (E::values(&x), sources.clone());
        let mut expected_later = vec![0.0; lines * WIDTH];
        let mut outcomes = Vec::new();
        for (line, edits) in all.iter().enumerate() {
            if rows[line] < 0 {
                outcomes.resize(outcomes.len() + 4 * edits.len(), f32::NAN);
                continue;
            }
            let row = &mut expected[rows[line] as usize * WIDTH..][..WIDTH];
            let source = &mut expected_sources[line * SOURCE_WIDTH..][..SOURCE_WIDTH];
            let later = &mut expected_later[line * WIDTH..][..WIDTH];
            let base = norm(row);
            for edit in edits {
                outcomes.extend(edit.carry_out(row, source, later));
                outcomes.push(base);
                row.iter_mut().for_each(|x| *x = E::of(*x).value());
            }
        }
        let lists: Vec<&[Edit]> = all.iter().map(Vec::as_slice).collect();
        let found = edited(emulation, &x, &sources, &rows, &lists);
        // A number that is rounded to the other side is read by the edits that follow.
        let tolerance = 2e-6 + 8.0 * E::ROUNDING;
        let what = format!("edits of {lines} rows");
        assert_near(&found.rows, &expected, tolerance, &what);
        assert_near(
            &found.sources,
            &expected_sources,
            tolerance,
            &format!("{what}, sources"),
        );
        assert_near(
            &found.later,
            &expected_later,
            tolerance,
            &format!("{what}, later"),
        );
        assert_near(
            &found.outcomes,
            &outcomes,
            tolerance,
            &format!("{what}, outcomes"),
        );
        if lines == 64 {
            assert_alone_as_in_batch(lines, "edits", |lines| {
                let x = picked(&x, WIDTH, lines);
                let sources = picked(&sources, SOURCE_WIDTH, lines);
                let rows: Vec<i32> = (0..lines.len() as i32).collect();
                let lists: Vec<&[Edit]> = lines.iter().map(|&line| all[line].as_slice()).collect();
                bytes_of_rows(&edited(emulation, &x, &sources, &rows, &lists).rows, WIDTH)
            });
        }
    }
}
