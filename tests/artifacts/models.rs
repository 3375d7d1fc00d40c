//! Models read from every form, and written in Causeway's own.

use std::collections::BTreeMap;
use std::fs;

use candle_core::{DType, Device, Tensor};
use causeway::artifacts::{tensors, torch_pickle};
use causeway::models::config::{Activation, ActiveLocation, Norm, Positions};
use causeway::models::layout::{LayoutError, ModelFiles, ReadOptions};
use causeway::models::memory_need::MemoryNeed;
use causeway::models::released::parse_config;
use causeway::models::tensor_names::tensor_shapes;
use causeway::models::tokenizer::train_bpe;
use serde_json::json;

use crate::{GOLDEN, Scratch, golden};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_same(left: &BTreeMap<String, Tensor>, right: &BTreeMap<String, Tensor>) {
    let names = |tensors: &BTreeMap<String, Tensor>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right));
    for (name, tensor) in left {
        assert_eq!(tensor.dims(), right[name].dims(), "{name}");
        assert_eq!(values(tensor), values(&right[name]), "{name}");
    }
}

#[test]
fn the_golden_checkpoints_load_with_the_configuration_they_state() {
    for name in GOLDEN {
        let model = ModelFiles::read(&golden(name)).unwrap();
        let config = &model.config;
        assert_eq!(
            (config.n_layers, config.d_model, config.vocab_size),
            (2, 32, 96)
        );
        assert_eq!((config.n_heads, config.d_head, config.d_mlp), (4, 8, 128));
        assert_eq!(config.context_length, 32);
        let dense = name == "layernorm_tied_dense";
        assert_eq!(config.norm, if dense { Norm::Layer } else { Norm::Rms });
        assert_eq!(config.tied_unembedding, dense);
        assert_eq!(config.active_fraction, (!dense).then_some(0.25));
        assert_eq!(config.active_locations.len(), if dense { 0 } else { 8 });
        let sinks = name == "sink_bigram";
        assert_eq!(
            (config.attention_sinks, config.bigram_table),
            (sinks, sinks)
        );
        let concatenated = Positions::Concatenated { channels: 16 };
        let positions = if name == "cat_pos_emb" {
            concatenated
        } else {
            Positions::Added
        };
        assert_eq!(config.positions, positions);
        let shapes: BTreeMap<String, Vec<usize>> = model
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
            .collect();
        assert_eq!(shapes, tensor_shapes(config));
        assert!(model.tokenizer.is_some());
    }
}

/// The first residual stream is the embedding of the input: it ties the weights that were read, and their
/// order, to what the authors' code computed from the same file.
#[test]
fn the_embeddings_read_are_those_the_authors_code_used() {
    for name in GOLDEN {
        let directory = golden(name);
        let model = ModelFiles::read(&directory).unwrap();
        let expected = tensors::read(
            &directory.join("expected.safetensors"),
            tensors::FloatPrecision::AsStored,
        )
        .unwrap();
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap();
        let (batch, length) = ids.dims2().unwrap();
        let embedding = &model.tensors["transformer.wte.weight"];
        let mut stream = embedding
            .index_select(&ids.flatten_all().unwrap(), 0)
            .unwrap()
            .reshape((batch, length, 32))
            .unwrap();
        if model.config.positions == Positions::Added {
            let positions = &model.tensors["transformer.wpe.weight"];
            stream = stream
                .broadcast_add(&positions.narrow(0, 0, length).unwrap())
                .unwrap();
        }
        assert_eq!(values(&stream), values(&expected["activations.0.resid_in"]));
    }
}

#[test]
fn a_model_written_in_our_layout_reads_back_bit_for_bit() {
    for name in GOLDEN {
        let model = ModelFiles::read(&golden(name)).unwrap();
        let scratch = Scratch::new();
        let directory = scratch.0.join("new/model");
        model.write(&directory).unwrap();
        // Once more, over what is there.
        model.write(&directory).unwrap();
        let reread = ModelFiles::read(&directory).unwrap();
        assert_eq!(reread.config, model.config);
        assert_eq!(reread.tokenizer, model.tokenizer);
        assert_same(&reread.tensors, &model.tensors);
        let mut files: Vec<String> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(
            files,
            ["config.json", "model.safetensors", "tokenizer.json"]
        );
    }
}

#[test]
fn our_own_layout_is_taken_at_its_word_about_positions() {
    let mut model = ModelFiles::read(&golden("plain")).unwrap();
    let name = "transformer.wpe.weight";
    let zeros = model.tensors[name].zeros_like().unwrap();
    model.tensors.insert(name.to_owned(), zeros);
    let scratch = Scratch::new();
    model.write(&scratch.0).unwrap();
    let reread = ModelFiles::read(&scratch.0).unwrap();
    assert_eq!(reread.config.positions, Positions::Added);
    model.tensors.remove(name);
    assert!(matches!(
        model.write(&scratch.0),
        Err(LayoutError::MissingTensor { .. })
    ));
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_refused() {
    let scratch = Scratch::new();
    let mut model = ModelFiles::read(&golden("plain")).unwrap();
    let texts = ["a few words of text".to_owned()];
    let tokenizer = train_bpe(texts.into_iter(), 260).unwrap();
    model.tokenizer = Some(tokenizer.to_json().unwrap());
    let error = model.write(&scratch.0).unwrap_err().to_string();
    assert!(error.contains("260") && error.contains("96"), "{error}");
}

#[test]
fn mostly_zero_matrices_make_the_file_small() {
    let mut model = ModelFiles::read(&golden("plain")).unwrap();
    for tensor in model
        .tensors
        .values_mut()
        .filter(|tensor| tensor.rank() == 2)
    {
        let (shape, mut dense) = (tensor.dims().to_vec(), values(tensor));
        for (position, value) in dense.iter_mut().enumerate() {
            *value = if position % 64 == 3 {
                position as f32
            } else {
                0.0
            };
        }
        *tensor = Tensor::from_vec(dense, shape, &Device::Cpu).unwrap();
    }
    let scratch = Scratch::new();
    model.write(&scratch.0).unwrap();
    assert_same(
        &ModelFiles::read(&scratch.0).unwrap().tensors,
        &model.tensors,
    );
    let elements: usize = model.tensors.values().map(Tensor::elem_count).sum();
    let size = fs::metadata(scratch.0.join("model.safetensors"))
        .unwrap()
        .len();
    assert!(
        size < elements as u64,
        "{size} bytes for {elements} weights"
    );
}

/// Splits a golden checkpoint into two safetensors shards with prefixed names.
fn hugging_face_copy(name: &str) -> Scratch {
    let scratch = Scratch::new();
    let source = golden(name);
    fs::copy(
        source.join("beeg_config.json"),
        scratch.0.join("config.json"),
    )
    .unwrap();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut weight_map = BTreeMap::new();
    let stored = torch_pickle::read(&source.join("final_model.pt")).unwrap();
    for (index, (name, tensor)) in stored.into_iter().enumerate() {
        let name = format!("circuit_model.{name}");
        weight_map.insert(name.clone(), format!("part-{}.safetensors", index % 2));
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        let path = scratch.0.join(format!("part-{index}.safetensors"));
        tensors::write(&path, shard).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": weight_map});
    scratch.file("model.safetensors.index.json", index.to_string().as_bytes());
    scratch
}

#[test]
fn the_hugging_face_copy_is_the_same_model() {
    for name in GOLDEN {
        let scratch = hugging_face_copy(name);
        let copy = ModelFiles::read(&scratch.0).unwrap();
        let original = ModelFiles::read(&golden(name)).unwrap();
        assert_eq!(copy.config, original.config);
        assert_same(&copy.tensors, &original.tensors);
    }
}

#[test]
fn a_shard_index_cannot_reach_outside_its_directory() {
    let scratch = hugging_face_copy("plain");
    let index = json!({"weight_map": {"circuit_model.x": "../part-0.safetensors"}});
    scratch.file("model.safetensors.index.json", index.to_string().as_bytes());
    let error = ModelFiles::read(&scratch.0).unwrap_err().to_string();
    assert!(error.contains("not a valid file name"), "{error}");
}

#[test]
fn a_model_whose_position_embedding_is_zero_has_no_positions() {
    let scratch = hugging_face_copy("plain");
    let name = "circuit_model.transformer.wpe.weight".to_owned();
    for path in ["part-0.safetensors", "part-1.safetensors"] {
        let path = scratch.0.join(path);
        let mut shard = tensors::read(&path, tensors::FloatPrecision::Single).unwrap();
        if let Some(positions) = shard.get(&name) {
            let zeros = positions.zeros_like().unwrap();
            shard.insert(name.clone(), zeros);
            tensors::write(&path, &shard).unwrap();
        }
    }
    let model = ModelFiles::read(&scratch.0).unwrap();
    assert_eq!(model.config.positions, Positions::None);
    assert!(!model.tensors.contains_key("transformer.wpe.weight"));
}

#[test]
fn every_disagreement_between_configuration_and_weights_is_named() {
    let model = ModelFiles::read(&golden("plain")).unwrap();
    let scratch = Scratch::new();
    let name = "transformer.h.1.mlp.c_fc.weight";
    let mut missing = model.clone();
    missing.tensors.remove(name);
    let error = missing.write(&scratch.0).unwrap_err();
    assert!(
        matches!(&error, LayoutError::MissingTensor { name: found, expected, .. }
        if found == name && expected == &[128, 32])
    );
    let mut reshaped = model.clone();
    let transposed = reshaped.tensors[name].t().unwrap().contiguous().unwrap();
    reshaped.tensors.insert(name.to_owned(), transposed);
    let error = reshaped.write(&scratch.0).unwrap_err();
    assert!(matches!(&error, LayoutError::Shape { name: n, found, .. }
        if n == name && found == &[32, 128]));
    let mut infinite = model.clone();
    let bias = Tensor::from_vec(vec![f32::NAN; 32], 32, &Device::Cpu).unwrap();
    let bias_name = "transformer.h.0.mlp.c_proj.bias";
    infinite.tensors.insert(bias_name.to_owned(), bias);
    let error = infinite.write(&scratch.0).unwrap_err().to_string();
    assert!(
        error.contains(bias_name) && error.contains("finite"),
        "{error}"
    );
    let mut extra = model.clone();
    extra
        .tensors
        .insert("other".to_owned(), model.tensors[name].clone());
    assert!(
        extra
            .write(&scratch.0)
            .unwrap_err()
            .to_string()
            .contains("other")
    );
    let mut deep = model;
    deep.config.n_layers = 1 << 24;
    assert!(
        deep.write(&scratch.0)
            .unwrap_err()
            .to_string()
            .contains("layers")
    );
    // Nothing of all this has been written.
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn absent_configuration_fields_take_their_defaults() {
    let config = parse_config(
        br#"{"block_size": 8, "vocab_size": 10, "n_layer": 1, "n_head": 2, "d_model": 6, "dropout": 0.5}"#,
    )
    .unwrap();
    assert_eq!((config.d_head, config.d_mlp), (3, 24));
    assert_eq!(config.norm, Norm::Layer);
    assert_eq!(config.activation, Activation::Gelu);
    assert!(config.bias && config.tied_unembedding);
    assert!(!config.bigram_table && !config.attention_sinks);
    assert_eq!(config.active_fraction, None);
    let config = parse_config(
        br#"{"block_size": 8, "vocab_size": 10, "n_layer": 1, "n_head": 2, "d_model": 6, "n_mlp": 7,
             "afrac": 0.5, "rms_norm": false, "ln_bias": false}"#,
    )
    .unwrap();
    assert_eq!(config.d_mlp, 7);
    assert_eq!(config.norm, Norm::LayerNoBias);
    let default: Vec<ActiveLocation> = config.active_locations.into_iter().collect();
    use ActiveLocation::{AttnIn, AttnOut, MlpIn, MlpOut};
    assert_eq!(default, [AttnIn, AttnOut, MlpIn, MlpOut]);
}

#[test]
fn a_wrong_configuration_field_is_named() {
    for (field, value) in [
        ("use_tied_aux_matrix", json!(true)),
        ("d_model", json!("6")),
        ("d_model", json!(null)),
        ("d_model", json!(7)),
        ("n_layer", json!(-1)),
        ("n_layers", json!(0)),
        ("vocab_size", json!(1e30)),
        ("n_head", json!(0)),
        ("bias", json!("yes")),
        ("activation_type", json!("silu")),
        ("residual_activation_type", json!(3)),
        ("afrac", json!("0.25")),
        ("active_fraction", json!(2.0)),
        ("afrac_loctypes", json!("attn_in,mlp_neurons")),
        ("d_pos_emb", json!(0.5)),
    ] {
        let mut config =
            json!({"block_size": 8, "vocab_size": 10, "n_layer": 1, "n_head": 2, "d_model": 6});
        // The last two are the names that the check of the finished configuration uses.
        let key = match field {
            "n_layers" => "n_layer",
            "active_fraction" => "afrac",
            other => other,
        };
        config[key] = value;
        let error = parse_config(config.to_string().as_bytes()).unwrap_err();
        let expected = match (field, &config["d_model"]) {
            // Seven channels on two heads: it is the head's width that has no value.
            ("d_model", width) if width == 7 => "d_head",
            ("n_head", _) => "d_head",
            (field, _) => field,
        };
        assert_eq!(error.field, expected, "{error}");
    }
}

/// A GPT-2 of two layers whose linear weights count up, so that a wrong orientation shows.
fn gpt2(prefix: &str) -> (Scratch, BTreeMap<String, Tensor>) {
    let scratch = Scratch::new();
    let config = json!({
        "model_type": "gpt2", "vocab_size": 11, "n_positions": 5, "n_embd": 4, "n_layer": 2, "n_head": 2,
        "n_inner": null, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    });
    scratch.file("config.json", config.to_string().as_bytes());
    let mut shapes = vec![
        ("wte.weight".to_owned(), vec![11, 4]),
        ("wpe.weight".to_owned(), vec![5, 4]),
        ("ln_f.weight".to_owned(), vec![4]),
        ("ln_f.bias".to_owned(), vec![4]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("ln_1.weight", vec![4]),
            ("ln_1.bias", vec![4]),
            ("attn.bias", vec![1, 1, 5, 5]),
            ("attn.c_attn.weight", vec![4, 12]),
            ("attn.c_attn.bias", vec![12]),
            ("attn.c_proj.weight", vec![4, 4]),
            ("attn.c_proj.bias", vec![4]),
            ("ln_2.weight", vec![4]),
            ("ln_2.bias", vec![4]),
            ("mlp.c_fc.weight", vec![4, 16]),
            ("mlp.c_fc.bias", vec![16]),
            ("mlp.c_proj.weight", vec![16, 4]),
            ("mlp.c_proj.bias", vec![4]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    let mut stored = BTreeMap::new();
    for (name, shape) in shapes {
        let count = shape.iter().product::<usize>() as u32;
        let tensor = Tensor::arange(0, count, &Device::Cpu).unwrap();
        let tensor = tensor.to_dtype(DType::F32).unwrap().reshape(shape).unwrap();
        stored.insert(format!("{prefix}{name}"), tensor);
    }
    tensors::write(&scratch.0.join("model.safetensors"), &stored).unwrap();
    (scratch, stored)
}

#[test]
fn a_hugging_face_gpt2_is_translated() {
    for prefix in ["", "transformer."] {
        let (scratch, stored) = gpt2(prefix);
        let model = ModelFiles::read(&scratch.0).unwrap();
        assert_eq!(model.config.activation, Activation::GeluTanh);
        assert_eq!(model.config.norm, Norm::Layer);
        assert_eq!(model.config.positions, Positions::Added);
        assert!(model.config.tied_unembedding);
        for name in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] {
            let ours = &model.tensors[&format!("transformer.h.1.{name}.weight")];
            let theirs = &stored[&format!("{prefix}h.1.{name}.weight")];
            assert_eq!(values(ours), values(&theirs.t().unwrap()), "{name}");
        }
        let embedding = &stored[&format!("{prefix}wte.weight")];
        assert_eq!(
            values(&model.tensors["transformer.wte.weight"]),
            values(embedding)
        );
        assert_eq!(values(&model.tensors["final_logits_bias"]), [0.0; 11]);
        let config = fs::read_to_string(scratch.0.join("config.json")).unwrap();
        let other = config
            .replace("1e-5", "1e-6")
            .replace("0.00001", "0.000001");
        assert_ne!(other, config);
        scratch.file("config.json", other.as_bytes());
        let error = ModelFiles::read(&scratch.0).unwrap_err().to_string();
        assert!(error.contains("layer_norm_epsilon"), "{error}");
    }
}

/// Hugging Face's GPT-2 files carry their causal masks as booleans, which no parameter is.
#[test]
fn a_gpt2_with_boolean_masks_is_read_without_them() {
    let (scratch, _) = gpt2("");
    let plain = ModelFiles::read(&scratch.0).unwrap();
    let path = scratch.0.join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let header_length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_length);
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap();
    let mut data = data.to_vec();
    let mut add = |name: &str, dtype: &str, shape: &[usize], bytes: usize| {
        let from = data.len();
        data.resize(from + bytes, 1);
        header.insert(
            name.to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [from, data.len()]}),
        );
    };
    for layer in 0..2 {
        // Behind what was there before under that name, which the first file has as numbers.
        add(&format!("h.{layer}.attn.masked_bias"), "F32", &[], 4);
        add(
            &format!("transformer.h.{layer}.attn.bias"),
            "BOOL",
            &[1, 1, 5, 5],
            25,
        );
        add(
            &format!("h.{layer}.attn.causal_mask"),
            "U8",
            &[1, 1, 5, 5],
            25,
        );
        add(
            &format!("h.{layer}.attn.rotary_emb.inv_freq"),
            "F8_E4M3",
            &[2],
            2,
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut masked = (header.len() as u64).to_le_bytes().to_vec();
    masked.extend_from_slice(header.as_bytes());
    masked.extend_from_slice(&data);
    fs::write(&path, masked).unwrap();
    let model = ModelFiles::read(&scratch.0).unwrap();
    assert_same(&model.tensors, &plain.tensors);
}

#[test]
fn a_buffer_that_an_index_lists_need_not_be_read() {
    let scratch = hugging_face_copy("plain");
    let original = ModelFiles::read(&golden("plain")).unwrap();
    let path = scratch.0.join("model.safetensors.index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["circuit_model.transformer.h.0.attn.bias"] = json!("part-0.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    let copy = ModelFiles::read(&scratch.0).unwrap();
    assert_same(&copy.tensors, &original.tensors);
}

#[test]
fn a_model_is_held_against_a_limit_before_its_weights_are_looked_at() {
    let scratch = Scratch::new();
    let model = ModelFiles::read(&golden("plain")).unwrap();
    model.write(&scratch.0).unwrap();
    let need = MemoryNeed::of(&model.config);
    let weights: usize = model.tensors.values().map(Tensor::elem_count).sum();
    assert_eq!(need.weights, 4 * weights as u64);
    let read = |model_bytes| {
        let limits = ReadOptions {
            model_bytes,
            ..ReadOptions::UNBOUNDED
        };
        ModelFiles::read_within(&scratch.0, limits)
    };
    assert!(read(need.total()).is_ok());
    fs::remove_file(scratch.0.join("model.safetensors")).unwrap();
    let error = read(need.total() - 1).unwrap_err();
    assert!(matches!(error, LayoutError::TooLarge { .. }), "{error}");
    let config = fs::read_to_string(scratch.0.join("config.json")).unwrap();
    for (field, absurd) in [
        ("context_length", "16777216"),
        ("n_heads", "16777216"),
        ("n_layers", "2000"),
    ] {
        let line = config.lines().find(|line| line.contains(field)).unwrap();
        let config = config.replace(line, &format!("\"{field}\": {absurd},"));
        scratch.file("config.json", config.as_bytes());
        let error = read(1 << 30).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn pickles_are_read_only_where_the_caller_lets_them() {
    let limits = ReadOptions {
        pickles: false,
        ..ReadOptions::UNBOUNDED
    };
    let error = ModelFiles::read_within(&golden("plain"), limits).unwrap_err();
    assert!(error.to_string().contains("causeway convert"), "{error}");
}
