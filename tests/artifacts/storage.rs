//! Single files: safetensors, sparse matrices, atomic replacement, and what a `.pt` file may contain.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};

use candle_core::{DType, Device, Tensor};
use causeway::artifacts::tensors::{FloatPrecision, Selection};
use causeway::artifacts::{ArtifactError, atomic, sparse_tensor, tensors, torch_pickle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Scratch;

fn named(tensor: Tensor) -> BTreeMap<String, Tensor> {
    BTreeMap::from([("a".to_owned(), tensor)])
}

#[test]
fn safetensors_keep_every_type_and_convert_on_request() {
    let scratch = Scratch::new();
    let path = scratch.0.join("t.safetensors");
    let base = Tensor::new(&[[0f32, 1.5, -2.0], [3.0, 4.0, 5.0]], &Device::Cpu).unwrap();
    let mut written = BTreeMap::new();
    for dtype in [
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
        DType::I64,
        DType::U32,
        DType::U8,
    ] {
        let tensor = base.abs().unwrap().to_dtype(dtype).unwrap();
        written.insert(format!("{dtype:?}"), tensor);
    }
    written.insert("transposed".to_owned(), base.t().unwrap());
    tensors::write(&path, &written).unwrap();
    let stored = tensors::read(&path, FloatPrecision::AsStored).unwrap();
    let single = tensors::read(&path, FloatPrecision::Single).unwrap();
    assert_eq!(stored.len(), written.len());
    for (name, tensor) in &written {
        assert_eq!(stored[name].dtype(), tensor.dtype());
        let float = tensor.dtype().is_float();
        let expected = if float { DType::F32 } else { tensor.dtype() };
        assert_eq!(single[name].dtype(), expected);
        let rows = |tensor: &Tensor| {
            tensor
                .to_dtype(DType::F64)
                .unwrap()
                .to_vec2::<f64>()
                .unwrap()
        };
        assert_eq!(rows(&stored[name]), rows(tensor));
        assert_eq!(rows(&single[name]), rows(tensor));
    }
}

/// A safetensors file with this header and this many bytes of data.
fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn lying_safetensors_headers_are_refused() {
    let scratch = Scratch::new();
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let good = format!(
        r#"{{"__metadata__":{{"k":"v"}},"a":{}}}"#,
        entry("[2]", 0, 8)
    );
    let path = scratch.file("good", &safetensors_file(&good, 8));
    assert_eq!(
        tensors::read(&path, FloatPrecision::Single).unwrap().len(),
        1
    );
    let huge = u64::MAX;
    for (header, data, hint) in [
        (
            format!(r#"{{"a":{}}}"#, entry("[2]", 0, 8)),
            4,
            "the data has 4",
        ),
        (format!(r#"{{"a":{}}}"#, entry("[2]", 0, 8)), 12, "holds 12"),
        (format!(r#"{{"a":{}}}"#, entry("[3]", 0, 8)), 8, "shape [3]"),
        (format!(r#"{{"a":{}}}"#, entry("[2]", 8, 0)), 8, "8..0"),
        (
            format!(r#"{{"a":{}}}"#, entry("[2]", 0, huge)),
            8,
            "the data has 8",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967296,4]", 0, 8)),
            8,
            "shape",
        ),
        (
            format!(
                r#"{{"a":{},"b":{}}}"#,
                entry("[2]", 0, 8),
                entry("[2]", 4, 12)
            ),
            12,
            "begins at byte 4",
        ),
        (
            format!(
                r#"{{"a":{},"b":{}}}"#,
                entry("[1]", 0, 4),
                entry("[1]", 8, 12)
            ),
            12,
            "begins at byte 8",
        ),
        (
            r#"{"a":{"dtype":"F99","shape":[],"data_offsets":[0,0]}}"#.to_owned(),
            0,
            "F99",
        ),
        (r#"{"a":3}"#.to_owned(), 0, "a"),
        // No elements, and a size that others would be allocated by.
        (
            format!(r#"{{"a":{}}}"#, entry("[70368744177664,0]", 0, 0)),
            0,
            "shape [70368744177664, 0]",
        ),
        (
            format!(r#"{{"a":{}}}"#, entry("[1,1,1,1,1,1,1,1,1]", 0, 4)),
            4,
            "9 dimensions",
        ),
        (
            format!(
                r#"{{"a":{},"a":{}}}"#,
                entry("[1]", 0, 4),
                entry("[1]", 4, 8)
            ),
            8,
            "twice",
        ),
        ("[]".to_owned(), 0, "header"),
    ] {
        let path = scratch.file("bad", &safetensors_file(&header, data));
        let error = tensors::read(&path, FloatPrecision::Single)
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{header}: {error}");
    }
    let mut file = safetensors_file(&good, 8);
    file[..8].copy_from_slice(&huge.to_le_bytes());
    let path = scratch.file("bad", &file);
    let error = tensors::read(&path, FloatPrecision::Single).unwrap_err();
    assert!(matches!(error, ArtifactError::Damaged { .. }), "{error}");
}

#[test]
fn long_safetensors_headers_are_refused_before_they_are_read() {
    let scratch = Scratch::new();
    let padded = |length: usize| {
        let mut header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned();
        header.push_str(&" ".repeat(length - header.len()));
        scratch.file("padded", &safetensors_file(&header, 4))
    };
    let read = |path: &std::path::Path| tensors::read(path, FloatPrecision::Single);
    assert_eq!(read(&padded(1 << 20)).unwrap().len(), 1);
    let error = read(&padded(100_000_000)).unwrap_err().to_string();
    assert!(error.contains("a header at most 8388608"), "{error}");

    let empty = r#":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let many: Vec<String> = (0..70_000).map(|n| format!("\"t{n}\"{empty}")).collect();
    let header = format!("{{{}}}", many.join(","));
    let path = scratch.file("many", &safetensors_file(&header, 0));
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains("more than 65536 tensors"), "{error}");
}

#[test]
fn tensors_that_are_passed_over_may_have_any_type_and_cost_nothing() {
    let scratch = Scratch::new();
    let header = concat!(
        r#"{"mask":{"dtype":"BOOL","shape":[1,1,2,2],"data_offsets":[0,4]},"#,
        r#""a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#
    );
    let path = scratch.file("masked", &safetensors_file(header, 4 + 4));
    let read = |most_bytes| {
        let passed_over: fn(&str) -> bool = |name| name == "mask";
        let selection = Selection {
            passed_over,
            most_bytes,
        };
        tensors::read_selected(&path, FloatPrecision::Single, selection)
    };
    let read_all = tensors::read(&path, FloatPrecision::Single).unwrap_err();
    assert!(read_all.to_string().contains("BOOL"), "{read_all}");
    assert_eq!(read(8).unwrap().keys().collect::<Vec<_>>(), ["a"]);
    // Two numbers in half precision are eight bytes once they are read.
    let error = read(7).unwrap_err().to_string();
    assert!(error.contains("take 8 bytes; at most 7"), "{error}");
}

/// A file of a terabyte that takes no room on the disk.
#[test]
fn a_file_of_holes_is_bounded_by_what_is_expected_of_it() {
    let scratch = Scratch::new();
    let size = 1u64 << 40;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}"#);
    let path = scratch.file("holes", &safetensors_file(&header, 0));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    if file.set_len(8 + header.len() as u64 + size).is_err() {
        // Not on this file system.
        return;
    }
    let selection = Selection {
        most_bytes: 1 << 20,
        ..Selection::ALL
    };
    let error = tensors::read_selected(&path, FloatPrecision::Single, selection).unwrap_err();
    assert!(error.to_string().contains("at most 1048576"), "{error}");
    let error = atomic::read_small(&path, 1 << 20).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

/// Every reader, on what is no regular file; opening the pipe would wait for its writer for ever.
#[test]
fn only_regular_files_are_read() {
    let scratch = Scratch::new();
    let pipe = scratch.0.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let folder = scratch.0.join("folder");
    fs::create_dir(&folder).unwrap();
    let linked = scratch.0.join("linked");
    std::os::unix::fs::symlink("/dev/zero", &linked).unwrap();
    for (path, kind) in [
        (pipe, "a named pipe"),
        (folder, "a directory"),
        (linked, "a device"),
    ] {
        let errors = [
            tensors::read(&path, FloatPrecision::Single).unwrap_err(),
            torch_pickle::read(&path).unwrap_err(),
            atomic::read_small(&path, 1 << 20).unwrap_err(),
            causeway::artifacts::manifest::hash_file(&path).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains(kind), "{error}");
        }
    }
    let real = scratch.file("real", b"content");
    let linked = scratch.0.join("followed");
    std::os::unix::fs::symlink(real, &linked).unwrap();
    assert_eq!(atomic::read_small(&linked, 7).unwrap(), b"content");
}

#[test]
fn sparse_matrices_survive_bit_for_bit_at_every_density() {
    let mut rng = StdRng::seed_from_u64(3);
    let path = std::path::Path::new("memory");
    for one_in in [1usize, 2, 3, 5, 17, 64, 300, 1000, 20_000] {
        let dense: Vec<f32> = (0..60_000)
            .map(|_| {
                if rng.random_range(0..one_in) == 0 {
                    rng.random_range(-1.0..1.0)
                } else {
                    0.0
                }
            })
            .collect();
        let tensor = Tensor::from_vec(dense.clone(), (300, 200), &Device::Cpu).unwrap();
        let packed = sparse_tensor::pack(&named(tensor)).unwrap();
        assert_eq!(
            packed.contains_key("a.indices"),
            (5..=1000).contains(&one_in),
            "{one_in}"
        );
        let size: usize = packed
            .values()
            .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
            .sum();
        assert!(size <= 4 * 60_000);
        assert!(one_in != 64 || size < 60_000 / 64 * 6, "{size}");
        let unpacked = sparse_tensor::unpack(path, packed, |_| Some(&[300, 200])).unwrap();
        assert_eq!(unpacked["a"].dims(), [300, 200]);
        let values: Vec<f32> = unpacked["a"].flatten_all().unwrap().to_vec1().unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&dense));
    }
    let mut signed = vec![0f32; 64];
    signed[63] = -0.0;
    signed[0] = 1.0;
    let tensor = Tensor::from_vec(signed, (8, 8), &Device::Cpu).unwrap();
    let packed = sparse_tensor::pack(&named(tensor)).unwrap();
    let unpacked = sparse_tensor::unpack(path, packed, |_| Some(&[8, 8])).unwrap();
    let values: Vec<f32> = unpacked["a"].flatten_all().unwrap().to_vec1().unwrap();
    assert!(values[63].is_sign_negative());
}

#[test]
fn lying_sparse_matrices_are_refused() {
    let path = std::path::Path::new("memory");
    let parts = |indices: &[u8], values: &[f32], shape: &[u32]| {
        let device = &Device::Cpu;
        BTreeMap::from([
            (
                "a.indices".to_owned(),
                Tensor::new(indices, device).unwrap(),
            ),
            ("a.values".to_owned(), Tensor::new(values, device).unwrap()),
            ("a.shape".to_owned(), Tensor::new(shape, device).unwrap()),
        ])
    };
    let square: &[usize] = &[4, 4];
    let unpack = |parts| sparse_tensor::unpack(path, parts, |_| Some(square));
    assert!(unpack(parts(&[4, 12], &[1.0, 2.0], &[4, 4])).is_ok());
    for bad in [
        parts(&[4, 13], &[1.0, 2.0], &[4, 4]),
        parts(&[4, 0], &[1.0, 2.0], &[4, 4]),
        parts(&[4], &[1.0, 2.0], &[4, 4]),
        parts(&[4, 2, 1], &[1.0, 2.0], &[4, 4]),
        parts(&[0xff; 20], &[1.0, 2.0], &[4, 4]),
        parts(&[1, 1], &[1.0, 2.0], &[u32::MAX, u32::MAX]),
        parts(&[1, 1], &[1.0, 2.0], &[1 << 20, 4]),
        parts(&[1, 1], &[1.0, 2.0], &[16]),
        // Twice as large as it is to be, which its values would allow.
        parts(&[4, 12], &[1.0, 2.0], &[8, 4]),
    ] {
        assert!(unpack(bad).is_err());
    }
    let mut incomplete = parts(&[4, 12], &[1.0, 2.0], &[4, 4]);
    incomplete.remove("a.values");
    let error = unpack(incomplete).unwrap_err().to_string();
    assert!(error.contains("a.values"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let scratch = Scratch::new();
    let path = scratch.file("f", b"old");
    let result: Result<(), ArtifactError> = atomic::write_with(&path, |file| {
        file.write_all(b"half of the new").unwrap();
        file.flush().unwrap();
        Err(ArtifactError::Damaged {
            path: "x".into(),
            place: String::new(),
            problem: String::new(),
        })
    });
    assert!(result.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    atomic::write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    // A directory cannot be replaced by a file: the rename fails after the content has been written.
    fs::create_dir(scratch.0.join("d")).unwrap();
    fs::create_dir(scratch.0.join("d/e")).unwrap();
    assert!(atomic::write(&scratch.0.join("d"), b"new").is_err());
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
}

/// One tensor `a` over storage 0 of `count` floats, as `torch.save` spells it.
pub fn program(count: u32, offset: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    let integer = |out: &mut Vec<u8>, value: u32| {
        out.push(b'J');
        out.extend_from_slice(&value.to_le_bytes());
    };
    out.extend_from_slice(
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
    );
    integer(&mut out, count);
    out.extend_from_slice(b"tQ");
    integer(&mut out, offset);
    for sizes in [shape, strides] {
        out.push(b'(');
        for &size in sizes {
            integer(&mut out, size);
        }
        out.push(b't');
    }
    out.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtRs.");
    out
}

/// A `.pt` file of this program and this one storage.
pub fn archive(program: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [
        ("m/data.pkl", program),
        ("m/byteorder", b"little"),
        ("m/data/0", storage),
    ] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|value| (value as f32).to_le_bytes())
        .collect()
}

#[test]
fn contiguous_shifted_and_transposed_views_are_read() {
    let scratch = Scratch::new();
    for (offset, shape, strides, expected) in [
        (0, vec![6], vec![1], vec![0., 1., 2., 3., 4., 5.]),
        (2, vec![2, 2], vec![2, 1], vec![2., 3., 4., 5.]),
        (0, vec![3, 2], vec![1, 3], vec![0., 3., 1., 4., 2., 5.]),
        (1, vec![3], vec![2], vec![1., 3., 5.]),
        (5, vec![], vec![], vec![5.]),
        (0, vec![0, 3], vec![3, 1], vec![]),
        (0, vec![1, 6], vec![99, 1], vec![0., 1., 2., 3., 4., 5.]),
    ] {
        let file = archive(&program(6, offset, &shape, &strides), &floats(6));
        let tensors = torch_pickle::read(&scratch.file("m.pt", &file)).unwrap();
        let values: Vec<f32> = tensors["a"].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, expected);
        let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
        assert_eq!(tensors["a"].dims(), shape);
    }
}

#[test]
fn views_and_storages_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    for (count, offset, shape, strides, hint) in [
        (6, 1, vec![6], vec![1], "beyond"),
        (6, 0, vec![7], vec![1], "more than the 6"),
        (6, 0, vec![3], vec![3], "beyond"),
        (6, 0, vec![4096, 4096], vec![0, 0], "more than the 6"),
        (6, 7, vec![0], vec![1], "beyond"),
        (
            6,
            0,
            vec![0, 0x7fff_ffff, 0x7fff_ffff, 0x7fff_ffff],
            vec![0; 4],
            "more than the 6",
        ),
        (6, 0, vec![0x7fff_ffff, 0], vec![0; 2], "more than the 6"),
        (6, 0, vec![2, 2], vec![1], "differ in length"),
        (6, 0, vec![1; 9], vec![1; 9], "at most 8"),
        (
            6,
            0,
            vec![0x7fff_ffff; 4],
            vec![0x7fff_ffff; 4],
            "more than the 6",
        ),
        (6, 0, vec![0xffff_ffff], vec![1], "negative"),
        (7, 0, vec![6], vec![1], "m/data/0"),
        (5, 0, vec![5], vec![1], "m/data/0"),
    ] {
        let file = archive(&program(count, offset, &shape, &strides), &floats(6));
        let error = torch_pickle::read(&scratch.file("m.pt", &file))
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint) && error.contains("m.pt"), "{error}");
    }
}

#[test]
fn a_program_that_wants_more_than_tensors_is_refused() {
    let scratch = Scratch::new();
    let nested = [b"\x80\x02)".as_slice(), &[0x85; 2000], b"."].concat();
    let tall = [b"\x80\x02".as_slice(), &[b'N'; 200_000], b"."].concat();
    for (program, hint) in [
        (
            b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00lstR.".as_slice(),
            "os.system",
        ),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "arguments",
        ),
        (b"\x80\x04}.", "protocol 4"),
        (
            b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
            "every entry must be a tensor",
        ),
        (b"\x80\x02}K\x01K\x01s.", "a key is an integer"),
        (b"\x80\x02h\x07.", "never set"),
        (b"\x80\x02q\x00.", "empty stack"),
        (b"\x80\x02}(u", "cut off"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "4294967295"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02}(R.", "fewer"),
        (b"\x80\x02N.", "a dictionary must be"),
        (b"\x80\x02].", "0x5d"),
        (b"", "cut off"),
        (&nested, "nest"),
        (&tall, "values"),
    ] {
        let path = scratch.file("m.pt", &archive(program, b""));
        let error = torch_pickle::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(hint) && error.contains("m/data.pkl"),
            "{error}"
        );
    }
    let path = scratch.file("m.pt", b"not a zip file");
    assert!(
        torch_pickle::read(&path)
            .unwrap_err()
            .to_string()
            .contains("zip")
    );
}
