//! Tables of edits as a device carries them out, against the host's routine.

use candle_core::Tensor;
use causeway::features::group::Group;
use causeway::interventions::carry::Carrier;
use causeway::interventions::operation::Action;
use causeway::interventions::row_delta::RowDelta;
use causeway::interventions::row_edits::{
    Change, Outcome, ReadFrom, Rms, RowEdit, RowEdits, WriteTo,
};
use causeway::interventions::rows_of_arms::RowBlock;
use causeway::interventions::subject::{Direction, Subject};
use causeway::models::location::{Location, Site};
use causeway::numerics::kernels::{self, edit_table::EditTable};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{both, device, furthest};

const ROWS: usize = 6;
const WIDTH: usize = 19;
/// Of the rows that features are read of elsewhere.
const READ_WIDTH: usize = 23;

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Itself,
    Added,
    Columns,
    Later,
    Given,
    ReadOnly,
}

/// An edit and all that it borrows.
struct Drawn {
    row: usize,
    how: How,
    subject: Subject,
    action: Action,
    strength: f64,
    counterfactual: Vec<f32>,
    carrier: Carrier,
    given: Vec<f32>,
    control: Option<Vec<f32>>,
}

fn numbers(count: usize, draw: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| draw.random_range(-1.0..1.0)).collect()
}

fn site() -> Site {
    Site::before_attention(0, 1)
}

fn drawn(row: usize, draw: &mut SmallRng) -> Drawn {
    use How::{Added, Columns, Given, Itself, Later, ReadOnly};
    let how = [Itself, Added, Columns, Later, Given, ReadOnly][draw.random_range(0..6)];
    let width = match how {
        Columns | Later => READ_WIDTH,
        _ => WIDTH,
    };
    let is_direction = how == Added || how == Itself && draw.random_bool(0.3);
    let kind = draw.random_range(0..if is_direction { 7 } else { 11 });
    let count = match kind {
        10 => 2,
        _ => draw.random_range(1..5),
    };
    let subject = match is_direction {
        true => {
            let vector = numbers(width, draw);
            Subject::Direction(Direction {
                site: site(),
                squared_norm: vector.iter().map(|&v| f64::from(v).powi(2)).sum(),
                vector,
            })
        }
        false => {
            let mut all: Vec<usize> = (0..width).collect();
            let channels = (0..count).map(|_| all.swap_remove(draw.random_range(0..all.len())));
            Subject::Channels(Group {
                place: Location::Site(site()),
                channels: channels.collect(),
                weights: vec![(1.0 / count as f64).sqrt(); count],
            })
        }
    };
    let value = draw.random_range(-2.0..2.0);
    let each = || numbers(count, &mut SmallRng::seed_from_u64(row as u64));
    let doubles = each().into_iter().map(f64::from);
    let action = match kind {
        0 => Action::Add(value),
        1 => Action::Set(value),
        2 => Action::Clamp {
            min: value,
            max: value + 0.5,
        },
        3 => Action::Scale(value),
        4 => Action::Ablate(each()),
        5 => Action::Patch { stream: 0 },
        6 if is_direction => Action::AddResidual(0.3 * value),
        6 | 7 => Action::AddEach(doubles.collect()),
        8 => Action::ScaleEach(value),
        9 => Action::ClampEach(doubles.map(|least| (least, least + 0.5)).collect()),
        _ => Action::Swap,
    };
    let unit = numbers(WIDTH, draw);
    let length = unit.iter().map(|x| x * x).sum::<f32>().sqrt();
    Drawn {
        row,
        how,
        subject,
        action,
        strength: [1.0, draw.random_range(-2.0..2.0)][draw.random_range(0..2)],
        counterfactual: numbers(width, draw),
        carrier: Carrier::of_columns(
            Location::Site(site()),
            (0..count).map(|_| numbers(WIDTH, draw)).collect(),
            draw.random_bool(0.5),
        ),
        given: numbers(WIDTH, draw),
        control: draw
            .random_bool(0.3)
            .then(|| unit.iter().map(|x| x / length).collect()),
    }
}

fn entry(of: &Drawn, row: usize, block: usize, stream: usize) -> RowEdit<'_> {
    let read = match of.how {
        How::Columns | How::Later => ReadFrom::Block { block, row: of.row },
        _ => ReadFrom::Row,
    };
    let rms = match of.carrier.times_sparse_rms {
        true => Rms::Of {
            block: stream,
            row: of.row,
        },
        false => Rms::Known(1.0),
    };
    let (subject, carrier) = (&of.subject, &of.carrier);
    let change = match of.how {
        How::Given => Change::Given(RowDelta::OnHost(of.given.clone())),
        How::ReadOnly => Change::Nothing { subject, read },
        _ => Change::Operation {
            subject,
            action: &of.action,
            strength: of.strength,
            counterfactual: matches!(of.action, Action::Patch { .. })
                .then(|| of.counterfactual.clone()),
            read,
            write: match of.how {
                How::Columns => WriteTo::Columns { carrier, rms },
                How::Later => WriteTo::Later { carrier, rms },
                How::Added => WriteTo::Added,
                _ => WriteTo::Itself,
            },
        },
    };
    RowEdit {
        row,
        change,
        control: of.control.as_deref(),
    }
}

/// The rows after all edits, and what each edit came to.
fn carried_out(x: &Tensor, read: &Tensor, edits: &[Drawn]) -> (Vec<f32>, Vec<Outcome>) {
    let mut table = RowEdits::default();
    let block = RowBlock::gather(read, (0..ROWS).map(Some)).unwrap();
    let stream = RowBlock::gather(&read.narrow(1, 0, 11).unwrap(), (0..ROWS).rev().map(Some));
    let (block, stream) = (table.add_block(block), table.add_block(stream.unwrap()));
    for of in edits {
        let row = table.row(of.row);
        table.push(entry(of, row, block, stream));
    }
    let mut all = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    if !kernels::run_on(x.device()) {
        let named = table.rows().to_vec();
        let at = |row: u32| row as usize * WIDTH..(row as usize + 1) * WIDTH;
        let mut rows: Vec<f32> = named
            .iter()
            .flat_map(|&row| all[at(row)].to_vec())
            .collect();
        let outcomes = table.carry_out(&mut rows, WIDTH, true).unwrap();
        for (row, changed) in named.into_iter().zip(rows.chunks_exact(WIDTH)) {
            all[at(row)].copy_from_slice(changed);
        }
        return (all, outcomes);
    }
    // Beside another user of the same batch, which changes nothing.
    let mut device_table = EditTable::new(WIDTH);
    assert!(RowEdits::default().tabulate(0, &mut device_table).unwrap());
    let first = device_table.mark();
    assert!(table.tabulate(0, &mut device_table).unwrap());
    let end = device_table.mark();
    let done = device_table.carry_out(x).unwrap();
    let outcomes = table.outcomes(&done.between(first, end), true).unwrap();
    (
        done.rows.flatten_all().unwrap().to_vec1().unwrap(),
        outcomes,
    )
}

/// An operation on a row that a block does not have is the host's, which leaves it out.
#[test]
fn a_row_that_was_not_read_is_left_to_the_host() {
    let (_, (), _) = both(|| {
        let mut draw = SmallRng::seed_from_u64(8);
        let read = Tensor::from_vec(numbers(READ_WIDTH, &mut draw), (1, READ_WIDTH), &device());
        let read = read.unwrap();
        let of = loop {
            let of = drawn(0, &mut draw);
            if of.how == How::Columns && !of.carrier.times_sparse_rms {
                break of;
            }
        };
        for (beside, fits) in [(Some(0), true), (None, false)] {
            let mut table = RowEdits::default();
            let block = RowBlock::gather(&read, std::iter::once(beside)).unwrap();
            let block = table.add_block(block);
            let row = table.row(0);
            table.push(entry(&of, row, block, block));
            let mut device_table = EditTable::new(WIDTH);
            assert_eq!(table.tabulate(0, &mut device_table).unwrap(), fits);
        }
    });
}

#[test]
fn tables_of_edits_are_carried_out_as_on_the_host() {
    let mut draw = SmallRng::seed_from_u64(4);
    for case in 0..120 {
        let tensor = |values: &[f32], width: usize| {
            Tensor::from_slice(values, (ROWS, width), &device()).unwrap()
        };
        let x = numbers(ROWS * WIDTH, &mut draw);
        let read = numbers(ROWS * READ_WIDTH, &mut draw);
        // The last row has no edits.
        let edits: Vec<Drawn> = (0..ROWS - 1)
            .flat_map(|row| vec![row; [1, 4, 2, 1, 3][row]])
            .map(|row| drawn(row, &mut draw))
            .collect();
        let (host, device, launched) =
            both(|| carried_out(&tensor(&x, WIDTH), &tensor(&read, READ_WIDTH), &edits));
        assert!(launched.contains("row_edits_f32"), "{launched:?}");
        let apart = furthest(&host.0, &device.0);
        let told: Vec<_> = edits
            .iter()
            .map(|of| (of.row, of.how, &of.action))
            .collect();
        assert!(apart < 1e-4, "case {case}: {apart}, {told:?}");
        for (of, (host, device)) in edits.iter().zip(host.1.iter().zip(&device.1)) {
            let numbers = |of: &Outcome| [of.before, of.after, of.change_norm, of.base_norm];
            let told = (case, of.how, &of.action, host, device);
            assert!(
                furthest(&numbers(host), &numbers(device)) < 1e-4,
                "{told:?}"
            );
            let later = |of: &Outcome| match &of.later {
                Some(later) => later.values().unwrap().into_owned(),
                None => vec![0.0; WIDTH],
            };
            assert!(furthest(&later(host), &later(device)) < 1e-4, "{told:?}");
        }
    }
}
