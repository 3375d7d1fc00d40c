//! How changes of sparse features reach the dense model, held against the formulas written out.

use candle_core::{Device, Result, Tensor};
use serde_json::json;

use super::forward::{
    OTHER, PROMPT, SetChannel, assert_steered, column, dense_with, last_distribution, one, place,
    read, rms, run, scaled, site,
};
use super::pair::{D_DENSE, D_SPARSE, catalog, steered};
use crate::models::location::Location;
use crate::models::tap::ResidualTap;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::rows;

#[test]
fn a_site_channel_is_carried_by_its_decoder_column() {
    let catalog = catalog();
    let sparse = &catalog.models["sparse"].transformer;
    let values = read(sparse, PROMPT, "1.resid_in");
    let column = column(&catalog, "1.resid_in", 8);
    let change: Vec<Vec<f32>> = values
        .iter()
        .map(|row| scaled(&column, 0.75 * (2.5 - row[8])))
        .collect();
    let expected = dense_with(&catalog, PROMPT, "1.resid_in", &change);
    let edit = json!({"feature": {"node": "1.resid_in", "channel": 8}, "op": "set", "value": 2.5, "strength": 0.75});
    assert_steered(&catalog, &one(edit), &expected, 1e-5);
}

#[test]
fn a_sublayer_input_is_carried_to_the_stream_with_the_streams_scale() {
    let catalog = catalog();
    let sparse = &catalog.models["sparse"].transformer;
    let (values, stream) = (
        read(sparse, PROMPT, "1.mlp.act_in"),
        read(sparse, PROMPT, "1.resid_mid"),
    );
    let gain = rows::to_vec(
        &sparse
            .sublayer_input(site("1.resid_mid"))
            .expect("an input")
            .norm
            .gain,
    )
    .expect("gains")[7];
    let column = column(&catalog, "1.resid_mid", 7);
    let change = values.iter().zip(&stream);
    let change: Vec<Vec<f32>> = change
        .map(|(row, stream)| scaled(&column, (1.5 - row[7]) * rms(stream) / gain))
        .collect();
    let expected = dense_with(&catalog, PROMPT, "1.resid_mid", &change);
    let edit = json!({"feature": {"node": "1.mlp.act_in", "channel": 7}, "op": "set", "value": 1.5, "write": "residual"});
    assert_steered(&catalog, &one(edit), &expected, 1e-5);
}

#[test]
fn a_sublayer_input_is_carried_into_the_same_sublayer() {
    let catalog = catalog();
    let (dense, sparse) = (
        &catalog.models["dense"].transformer,
        &catalog.models["sparse"].transformer,
    );
    let at = site("1.resid_in");
    let gains = |model: &Transformer| {
        rows::to_vec(&model.sublayer_input(at).expect("an input").norm.gain).expect("gains")
    };
    let (gain, dense_gains) = (gains(sparse)[7], gains(dense));
    let column = column(&catalog, "1.resid_in", 7);
    let mean = column.iter().sum::<f32>() / column.len() as f32;
    let values = read(sparse, PROMPT, "1.attn.act_in");
    struct Add(Vec<Vec<f32>>);
    impl ResidualTap for Add {
        fn visit(&mut self, at: Location, value: Tensor) -> Result<Tensor> {
            match at == place("1.attn.act_in") {
                true => value + Tensor::new(self.0.clone(), &Device::Cpu)?,
                false => Ok(value),
            }
        }
    }
    let change = values.iter().map(|row| {
        let factor = (1.5 - row[7]) * (1.2 / 0.8) / gain;
        column
            .iter()
            .zip(&dense_gains)
            .map(|(w, g)| factor * g * (w - mean))
            .collect()
    });
    let (_, expected) = run(dense, PROMPT, &[], &mut Add(change.collect()));
    let edit =
        json!({"feature": {"node": "1.attn.act_in", "channel": 7}, "op": "set", "value": 1.5});
    assert_steered(&catalog, &one(edit), &expected, 1e-5);
}

#[test]
fn a_node_inside_a_sublayer_is_carried_by_the_change_of_its_output() {
    let catalog = catalog();
    let sparse = &catalog.models["sparse"].transformer;
    for (node, output, at) in [
        ("0.attn.q", "0.attn.resid_delta", "0.resid_mid"),
        ("0.attn.v", "0.attn.resid_delta", "0.resid_mid"),
        ("1.attn.y", "1.attn.resid_delta", "1.resid_mid"),
        ("0.mlp.post_act", "0.mlp.resid_delta", "1.resid_in"),
    ] {
        let before = read(sparse, PROMPT, output);
        let mut tap = SetChannel {
            place: place(node),
            channel: 6,
            value: 4.0,
        };
        let after = run(sparse, PROMPT, &[output], &mut tap).0.remove(0);
        let change: Vec<Vec<f32>> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| {
                let mut delta = vec![0.0; D_DENSE];
                for channel in 0..D_SPARSE {
                    let step = scaled(
                        &column(&catalog, at, channel),
                        after[channel] - before[channel],
                    );
                    delta
                        .iter_mut()
                        .zip(step)
                        .for_each(|(sum, step)| *sum += step);
                }
                delta
            })
            .collect();
        assert!(
            change.iter().flatten().any(|value| value.abs() > 1e-3),
            "{node} does nothing"
        );
        let expected = dense_with(&catalog, PROMPT, at, &change);
        let edit = json!({"feature": {"node": node, "channel": 6}, "op": "set", "value": 4});
        assert_steered(&catalog, &one(edit), &expected, 1e-4);
    }
}

#[test]
fn the_encoder_reads_the_dense_stream_as_edited_before() {
    let catalog = catalog();
    let dense = &catalog.models["dense"].transformer;
    let bridge = &catalog.pairs["pair"].bridge;
    // A vector at the first site, then a channel read through the encoder at a later one.
    let vector: Vec<f32> = (0..D_DENSE).map(|i| (i as f32 * 0.7).sin()).collect();
    struct AddRow(Vec<f32>);
    impl ResidualTap for AddRow {
        fn visit(&mut self, at: Location, value: Tensor) -> Result<Tensor> {
            match at == place("0.resid_in") {
                true => value.broadcast_add(&Tensor::new(self.0.clone(), &Device::Cpu)?),
                false => Ok(value),
            }
        }
    }
    let (values, _) = run(dense, PROMPT, &["1.resid_in"], &mut AddRow(vector.clone()));
    let stream = Tensor::new(values[0].clone(), &Device::Cpu).expect("rows");
    let encoded: Vec<Vec<f32>> = bridge
        .encode(site("1.resid_in"), &stream)
        .expect("encoded")
        .to_vec2()
        .expect("rows");
    let column = column(&catalog, "1.resid_in", 2);
    let stream: Vec<Vec<f32>> = values[0]
        .iter()
        .zip(&encoded)
        .map(|(row, encoded)| {
            row.iter()
                .zip(scaled(&column, 3.0 - encoded[2]))
                .map(|(x, d)| x + d)
                .collect()
        })
        .collect();
    let mut tokens = TokenRows::sequences(PROMPT, PROMPT.len(), &Device::Cpu).expect("rows");
    let logits = dense.tail(
        site("1.resid_in"),
        Tensor::new(stream, &Device::Cpu).expect("rows"),
        &mut tokens,
    );
    let expected = last_distribution(&logits.expect("logits"));
    let steer = json!({"edits": [
        {"feature": {"node": "1.resid_in", "channel": 2}, "op": "set", "value": 3, "read": "encoder"},
        {"feature": {"site": "0.resid_in", "vector": vector}, "op": "add", "value": 1},
    ]});
    assert_steered(&catalog, &steered(&[PROMPT], steer), &expected, 1e-4);
}

#[test]
fn counterfactuals_of_another_length_are_paired_from_the_end() {
    let catalog = catalog();
    let (dense, sparse) = (
        &catalog.models["dense"].transformer,
        &catalog.models["sparse"].transformer,
    );
    let bridge = &catalog.pairs["pair"].bridge;
    let longer: Vec<u32> = [&[9u32, 8], OTHER].concat();
    let column = column(&catalog, "1.resid_in", 4);
    for reads in ["sparse", "encoder"] {
        let values = |ids: &[u32]| -> Vec<Vec<f32>> {
            match reads {
                "sparse" => read(sparse, ids, "1.resid_in"),
                _ => {
                    let stream =
                        Tensor::new(read(dense, ids, "1.resid_in"), &Device::Cpu).expect("rows");
                    let encoded = bridge.encode(site("1.resid_in"), &stream).expect("encoded");
                    encoded.to_vec2().expect("rows")
                }
            }
        };
        let own = values(PROMPT);
        for other in [longer.as_slice(), &OTHER[2..]] {
            let partners = values(other);
            let change: Vec<Vec<f32>> = own
                .iter()
                .enumerate()
                .map(|(at, row)| {
                    let partner = (at + other.len()).checked_sub(PROMPT.len());
                    let step = partner.map_or(0.0, |partner| partners[partner][4] - row[4]);
                    scaled(&column, step)
                })
                .collect();
            let expected = dense_with(&catalog, PROMPT, "1.resid_in", &change);
            let edit = json!({"feature": {"node": "1.resid_in", "channel": 4}, "op": "patch", "read": reads,
                "to": {"prompt": other, "align": "end"}});
            assert_steered(&catalog, &one(edit), &expected, 1e-5);
        }
    }
}
