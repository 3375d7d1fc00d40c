//! Between rows, one a token, and tiles, one row a channel.

use super::processor::{LANES, Processor};
use super::transpose::transpose;
use crate::numerics::parts::Part;

/// The width of the tile of a sequence of `length` tokens.
pub fn width_of(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// Rows `[length, channels]` as a tile `[channels][width]`.
pub fn from_rows(cpu: Processor, rows: &[f32], channels: usize, width: usize, tile: &mut [f32]) {
    let _timed = Part::Layout.begin();
    let length = rows.len() / channels;
    transpose(cpu, rows, (length, channels), channels, tile, width);
    if length < width {
        for row in tile.chunks_exact_mut(width) {
            row[length..].fill(0.0);
        }
    }
}

/// A tile `[channels][width]` as rows `[length, channels]`.
pub fn to_rows(cpu: Processor, tile: &[f32], channels: usize, width: usize, rows: &mut [f32]) {
    let _timed = Part::Layout.begin();
    let length = rows.len() / channels;
    transpose(cpu, tile, (channels, length), width, rows, channels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_a_tile_and_rows_again() {
        let sizes = [(1, 1), (5, 3), (16, 16), (33, 40)];
        for (cpu, (length, channels)) in Processor::all()
            .into_iter()
            .flat_map(|cpu| sizes.map(|size| (cpu, size)))
        {
            let rows: Vec<f32> = (0..length * channels).map(|i| i as f32 + 1.0).collect();
            let width = width_of(length);
            let mut tile = vec![f32::NAN; channels * width];
            from_rows(cpu, &rows, channels, width, &mut tile);
            for channel in 0..channels {
                for token in 0..width {
                    let expected = match token < length {
                        true => rows[token * channels + channel],
                        false => 0.0,
                    };
                    assert_eq!(tile[channel * width + token], expected);
                }
            }
            let mut again = vec![f32::NAN; rows.len()];
            to_rows(cpu, &tile, channels, width, &mut again);
            assert_eq!(again, rows);
        }
    }
}
