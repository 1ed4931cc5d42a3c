//! Our own checkpoints: the safetensors layout with checksums.

use crate::harness::{Reached, Scratch, Target};
use alexnet::Network;
use alexnet::data::Preprocess;
use alexnet::train::checkpoint::{Checkpoint, State};
use alexnet::train::init::fresh;
use alexnet::train::recipe;
use alexnet::train::run_directory::SplitConfig;
use alexnet::train::tensor_file::{self, Reader, TensorRef};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_128;

const STAGES: [&str; 4] = ["refused at the header", "header read", "tensors read", "accepted"];

fn tensor_file(names: &[(&str, &[usize])], state: &str) -> Vec<u8> {
    let data: Vec<Vec<f32>> = names
        .iter()
        .map(|(_, shape)| (0..shape.iter().product::<usize>()).map(|i| i as f32 / 8.0 - 1.0).collect())
        .collect();
    let tensors: Vec<TensorRef> = names
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| TensorRef { name: (*name).into(), shape, data })
        .collect();
    let metadata = BTreeMap::from([("state".to_string(), state.to_string())]);
    let header = tensor_file::header(&tensors, &metadata).unwrap();
    let mut bytes = Vec::new();
    tensor_file::write(&mut bytes, &header, &tensors).unwrap();
    bytes
}

/// Writes the header anew with the right length, checksums and place for the checksum of the header, and gives the file
/// the length that the tensors need: as far as the header is still JSON.
fn repair(bytes: &mut Vec<u8>) {
    if bytes.len() < 8 {
        return;
    }
    let mut values = serde_json::Deserializer::from_slice(&bytes[8..]).into_iter::<serde_json::Value>();
    let Some(Ok(serde_json::Value::Object(mut root))) = values.next() else { return };
    let mut end = 8 + values.byte_offset();
    while bytes.get(end) == Some(&b' ') {
        end += 1;
    }
    let mut data = bytes.split_off(end);
    let Some(serde_json::Value::Object(mut metadata)) = root.remove("__metadata__") else { return };
    metadata.remove("header_xxh3");
    let number = |entry: &serde_json::Value, i: usize| {
        entry["data_offsets"][i].as_u64().filter(|&n| n < 1 << 20).map(|n| n as usize)
    };
    if let Some(last) = root.values().filter_map(|entry| number(entry, 1)).max() {
        data.resize(last, 0);
    }
    for (name, entry) in &root {
        let place = number(entry, 0).zip(number(entry, 1));
        if let Some(tensor) = place.and_then(|(start, stop)| data.get(start..stop)) {
            metadata.insert(format!("xxh3.{name}"), format!("{:032x}", xxh3_128(tensor)).into());
        }
    }
    let inner = |map: serde_json::Map<String, serde_json::Value>| {
        let text = serde_json::Value::Object(map).to_string();
        if text.len() == 2 { String::new() } else { format!(",{}", &text[1..text.len() - 1]) }
    };
    let prefix = r#"{"__metadata__":{"header_xxh3":""#;
    let mut text = format!("{prefix}{}\"{}}}{}}}", "0".repeat(32), inner(metadata), inner(root));
    let digits = format!("{:032x}", xxh3_128(text.as_bytes()));
    text.replace_range(prefix.len()..prefix.len() + 32, &digits);
    *bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(data);
}

#[test]
fn mutated_tensor_files() {
    let scratch = Scratch::new("step-000000001.safetensors");
    Target {
        name: "tensor file",
        seeds: vec![
            tensor_file(&[("conv1.weight", &[2, 3, 1, 1]), ("conv1.bias", &[2])], "{\"format\":1}"),
            tensor_file(&[("a", &[5]), ("empty", &[0]), ("b", &[2, 2])], "{}"),
        ],
        tokens: [&b"\"shape\":[]"[..], b"[0,4]", b"\"F32\"", b"null", b"{", b"]"].map(Vec::from).to_vec(),
        text: true,
        repair: &repair,
        stages: &STAGES,
        deep: (1, 0.15),
        parse: &|bytes| match Reader::open(scratch.put(bytes)) {
            Err(error) => Reached::refused(0, error),
            Ok(mut reader) => match reader.read(|_| true) {
                Err(error) => Reached::refused(1, error),
                Ok(_) => Reached::end(&STAGES),
            },
        },
    }
    .run();
}

fn state(net: &Network) -> State {
    let classes = vec!["cat".into(), "dog".into()];
    State {
        program: "test".into(),
        recipe: recipe::load("mini").unwrap().to_toml(),
        seed: 7,
        data_fingerprint: "0".into(),
        split: SplitConfig::TrainPerClass(3),
        origin: None,
        ..State::imported(net, classes, Preprocess::torchvision(), "")
    }
}

/// Whole checkpoints of a small network.
#[test]
fn mutated_checkpoints() {
    let scratch = Scratch::new("step-000000001.safetensors");
    let seed = {
        let net = Network::from_toml(
            "name = 'tiny'\ninput = [3, 2, 2]\nlayer = [{ name = 'fc1', type = 'linear', outputs = 2 }]\n",
            "a test",
        )
        .unwrap();
        let checkpoint = Checkpoint {
            state: state(&net),
            params: fresh(&net, 1).unwrap(),
            momentum: fresh(&net, 2).unwrap(),
        };
        let path = scratch.put(b"");
        checkpoint.write(path).unwrap();
        std::fs::read(path).unwrap()
    };
    Target {
        name: "checkpoint",
        seeds: vec![seed],
        tokens: [&b"\\\"conv\\\""[..], b"null", b"[]", b"filters = 9", b"1e999"].map(Vec::from).to_vec(),
        text: true,
        repair: &repair,
        stages: &STAGES,
        deep: (1, 0.15),
        parse: &|bytes| {
            let path = scratch.put(bytes);
            let read = Checkpoint::read(path);
            match (read, Reader::open(path)) {
                (Ok(_), _) => Reached::end(&STAGES),
                (Err(error), Err(_)) => Reached::refused(0, error),
                (Err(error), Ok(mut reader)) => {
                    Reached::refused(if reader.verify().is_ok() { 2 } else { 1 }, error)
                }
            }
        },
    }
    .run();
}
