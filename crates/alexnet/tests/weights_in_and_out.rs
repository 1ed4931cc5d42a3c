//! Weight files of other programs give what those programs compute with them (`golden/weights.py` made the files and the
//! numbers), and what is exported comes back as it was.

use alexnet::Network;
use alexnet::exec::contract::{Batch, Executor, InputLayout, Params, Pixels};
use alexnet::exec::reference::Reference;
use alexnet::interchange::export::{self, onnx::Output};
use alexnet::interchange::import::{Imported, Settings, import, usual_preprocessing};
use alexnet::interchange::recognise::recognise;
use alexnet::interchange::{WeightFile, caffemodel};
use alexnet::net::{Activation, Layer, Op};
use alexnet::train::init;
use alexnet::zoo;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights")
}

fn expected(name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The picture of `golden/weights.py`: (7919·i mod 512) / 256 − 1 in C, H, W order.
fn probabilities(net: &Network, params: &Params) -> Vec<f32> {
    let mut executor = Reference::<f32>::new(net, 1, None).unwrap();
    executor.set_params(params);
    let layout: InputLayout = executor.input_layout();
    let mut input = vec![0.0; layout.len()];
    let shape = net.input;
    for i in 0..shape.len() {
        let (c, y, x) = (i / (shape.h * shape.w), i / shape.w % shape.h, i % shape.w);
        input[layout.offset(0, c, y, x)] = (i * 7919 % 512) as f32 / 256.0 - 1.0;
    }
    let mut output = vec![0.0; executor.output_len()];
    executor.infer(Batch { input: Pixels::F32(&input), count: 1, labels: &[], weights: &[] }, &mut output);
    output
}

fn bring_in(path: &Path, net: Option<Network>) -> Imported {
    let file = WeightFile::open(path).unwrap();
    import(&file.read().unwrap(), &Settings { net, ..Settings::default() }).unwrap()
}

#[test]
fn files_of_other_programs_give_what_those_compute() {
    let plain = || Some(Network::from_toml(include_str!("weights/plain.toml"), "plain.toml").unwrap());
    for (file, net, golden, tolerance) in [
        ("plain-zip.pth", plain(), "plain", 1e-5),
        ("plain-legacy.pth", plain(), "plain", 1e-5),
        ("plain-checkpoint.pth", plain(), "plain", 1e-5),
        ("plain-f16.safetensors", plain(), "plain", 2e-3),
        ("caffe-v1.caffemodel", None, "caffe", 1e-5),
        ("caffe-v2.caffemodel", None, "caffe", 1e-5),
        ("caffe.onnx", None, "onnx", 1e-5),
    ] {
        let model = bring_in(&folder().join(file), net);
        let got = probabilities(&model.net, &model.params);
        for (got, want) in got.iter().zip(expected(golden)) {
            let error = (f64::from(*got) - want).abs() / want.abs();
            assert!(error <= tolerance, "{file}: {got} instead of {want}");
        }
    }
}

/// A network that has everything that has to be expressed: overhang, towers, both normalizations, both dropouts, |tanh|.
fn rich() -> Network {
    let mut net = zoo::alexnet_2012_code(5).with_width(1, 16).unwrap();
    net.name = "rich".into();
    net.input = alexnet::net::Shape::new(3, 96, 96);
    let at = net.position("relu6").unwrap();
    net.layers[at] = Layer { name: "abs6".into(), op: Op::Activation(Activation::AbsTanh) };
    net
}

#[test]
fn what_is_exported_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    for net in [rich(), zoo::torchvision(7).with_width(1, 16).unwrap()] {
        let params = init::fresh(&net, 3).unwrap();
        let (preprocess, _) = usual_preprocessing(&net);
        let classes: Vec<String> = (0..net.classes()).map(|c| format!("class \"{c}\"")).collect();
        let source =
            export::Source { net: &net, params: &params, preprocess: &preprocess, classes: &classes };
        let path = |ending: &str| folder.path().join(format!("{}.{ending}", net.name));
        export::safetensors::write(source, &path("safetensors")).unwrap();
        export::onnx::write(source, &path("onnx"), Output::Probabilities).unwrap();
        export::caffe::write(source, &path("caffemodel"), &path("prototxt")).unwrap();
        for ending in ["safetensors", "onnx", "caffemodel"] {
            let told = (ending == "caffemodel").then(|| net.clone());
            let back = bring_in(&path(ending), told);
            assert_eq!(back.params, params, "{} as {ending}", net.name);
            assert_eq!(back.net, net);
            if ending != "caffemodel" {
                assert_eq!((&back.classes, &back.preprocess), (&classes, &preprocess), "{ending}");
            }
        }
        let text = std::fs::read_to_string(path("prototxt")).unwrap();
        assert!(text.contains("input_param"), "{text}");
    }
    let names: Vec<String> = {
        let file = WeightFile::open(&folder.path().join("torchvision.safetensors")).unwrap();
        file.read().unwrap().tensors.iter().map(|t| t.name.clone()).collect()
    };
    assert!(
        names.contains(&"features.0.weight".into()) && names.contains(&"classifier.6.bias".into()),
        "{names:?}"
    );
}

#[test]
fn imported_models_serve_prediction_and_are_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let model = bring_in(&self::folder().join("caffe-v1.caffemodel"), None);
    let (params, preprocess) = (model.params.clone(), model.preprocess.clone());
    let path = folder.path().join("model.safetensors");
    model.checkpoint("caffe-v1.caffemodel").write(&path).unwrap();
    let opened = alexnet::eval::model::Model::open(&path).unwrap();
    assert_eq!((opened.params, opened.classes.len()), (params, 3));
    assert_eq!(*opened.preprocess, preprocess);
    let error = alexnet::train::checkpoint::Checkpoint::read(&path).unwrap_err().to_string();
    assert!(error.contains("without momentum"), "{error}");
}

/// The networks' own files at full size are not needed to recognize them: shapes and names are.
#[test]
fn ambiguous_files_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let net = zoo::alexnet_mini(4);
    let params = init::fresh(&net, 1).unwrap();
    let (preprocess, _) = usual_preprocessing(&net);
    let classes = vec![String::from("c"); 4];
    let source = export::Source { net: &net, params: &params, preprocess: &preprocess, classes: &classes };
    let path = folder.path().join("mini.safetensors");
    export::safetensors::write(source, &path).unwrap();
    let file = WeightFile::open(&path).unwrap();
    let mut foreign = file.read().unwrap();
    foreign.network = None;
    // Only the mini has these shapes.
    let found = recognise(&foreign, None).unwrap();
    assert_eq!(found.net, net);
    // Another network is refused with the first tensor that differs.
    let error = recognise(&foreign, Some(&zoo::zfnet(4))).unwrap_err().to_string();
    assert!(error.contains("conv1.weight is 32×3×5×5, and its conv1.weight needs 96×3×7×7"), "{error}");
    foreign.tensors.retain(|t| t.name != "conv3.bias");
    let error = recognise(&foreign, None).unwrap_err().to_string();
    assert!(error.contains("no network of `alexnet nets`"), "{error}");
}

#[test]
fn mean_pictures_of_caffe() {
    // A blob of 1×3×2×2: blue 0–3, green 4–7, red 8–11.
    let mut file = vec![0x08, 1, 0x10, 3, 0x18, 2, 0x20, 2, 0x2a, 48];
    file.extend((0..12).flat_map(|i| (i as f32).to_le_bytes()));
    let (picture, side) = caffemodel::read_mean(&file).unwrap();
    assert_eq!(side, 2);
    assert_eq!(picture, [8., 4., 0., 9., 5., 1., 10., 6., 2., 11., 7., 3.]);
    file[7] = 3;
    assert!(caffemodel::read_mean(&file).unwrap_err().contains("need 72 bytes"));
}
