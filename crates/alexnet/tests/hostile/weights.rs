//! Weight files of other programs: PyTorch's two, safetensors, Caffe's two, ONNX. The seeds are the files of
//! `tests/weights`, which those programs wrote (`golden/weights.py`).

use crate::harness::{Reached, Target, refused};
use alexnet::Network;
use alexnet::interchange::foreign::Foreign;
use alexnet::interchange::import::{Settings, import};
use alexnet::interchange::{caffemodel, onnx, pth, read, safetensors_file};

const STAGES: [&str; 4] = ["refused at the door", "contents read", "tensors read", "accepted"];

fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The network of the `plain` files.
fn plain() -> Network {
    Network::from_toml(include_str!("../weights/plain.toml"), "plain.toml").unwrap()
}

/// From what a reader gave to a model: sizes compared, values converted.
fn to_the_end(foreign: &Foreign, net: Option<Network>) -> Reached {
    match import(foreign, &Settings { net, ..Settings::default() }) {
        Ok(_) => Reached::end(&STAGES),
        Err(error) => Reached::refused(2, error),
    }
}

/// A reader's refusal as the program shows it.
fn refusal(stage: usize, why: String) -> Reached {
    Reached::refused(stage, alexnet::Error::Checkpoint(why))
}

fn any(bytes: &[u8]) -> Reached {
    match read(bytes) {
        Ok(foreign) => to_the_end(&foreign, None),
        Err(error) => Reached::refused(0, error),
    }
}

/// Where a signature stands in a file.
fn places(bytes: &[u8], signature: &[u8]) -> Vec<usize> {
    bytes.windows(signature.len()).enumerate().filter(|(_, w)| *w == signature).map(|(at, _)| at).collect()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Makes an archive's offsets, sizes and checksums those of what is in it, entry by entry in the file's order.
fn repair_zip(bytes: &mut [u8]) {
    let (locals, centrals) = (places(bytes, b"PK\x03\x04"), places(bytes, b"PK\x01\x02"));
    let ends = places(bytes, b"PK\x05\x06");
    let (Some(&directory), Some(&end)) = (centrals.first(), ends.last()) else { return };
    let descriptors = places(bytes, b"PK\x07\x08");
    for (i, (&local, &central)) in locals.iter().zip(&centrals).enumerate() {
        let length = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
        };
        let start = local + 30 + length(bytes, local + 26) + length(bytes, local + 28);
        let next = locals.get(i + 1).copied().unwrap_or(directory);
        let stop = descriptors.iter().copied().find(|&d| d >= start && d < next).unwrap_or(next);
        let Some(data) = bytes.get(start..stop) else { continue };
        let (crc, size) = (crc32fast::hash(data), data.len() as u32);
        put(bytes, central + 16, &crc.to_le_bytes());
        put(bytes, central + 20, &size.to_le_bytes());
        put(bytes, central + 24, &size.to_le_bytes());
        put(bytes, central + 42, &(local as u32).to_le_bytes());
    }
    let zip64 = places(bytes, b"PK\x06\x06").last().copied().filter(|&at| at > directory);
    let stop = zip64.unwrap_or(end).max(directory);
    let (size, start) = (stop - directory, directory);
    put(bytes, end + 12, &(size as u32).to_le_bytes());
    put(bytes, end + 16, &(start as u32).to_le_bytes());
    if let Some(at) = zip64 {
        put(bytes, at + 40, &(size as u64).to_le_bytes());
        put(bytes, at + 48, &(start as u64).to_le_bytes());
        if let Some(&locator) = places(bytes, b"PK\x06\x07").last() {
            put(bytes, locator + 8, &(at as u64).to_le_bytes());
        }
    }
}

/// Pieces of pickles: operations, names, sizes.
fn pickle_tokens() -> Vec<Vec<u8>> {
    [
        &b"cposix\nsystem\n"[..],
        b"cbuiltins\neval\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nDoubleStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"R",
        b"b",
        b"Q",
        b"(",
        b"t",
        b"u",
        b"s",
        b"\x81",
        b"\x93",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        b"}q\x00",
        b"h\x00",
        b"\x86",
        b"\x85",
        b"K\x00",
    ]
    .map(Vec::from)
    .to_vec()
}

#[test]
fn mutated_pytorch_zip() {
    Target {
        name: "PyTorch zip",
        seeds: vec![fixture("plain-zip.pth")],
        tokens: pickle_tokens(),
        text: false,
        repair: &|bytes| repair_zip(bytes),
        stages: &STAGES,
        deep: (1, 0.5),
        parse: &|bytes| match (pth::zip::directory(bytes), pth::read_zip(bytes)) {
            (Err(error), _) => refusal(0, error),
            (Ok(_), Err(error)) => refusal(1, error),
            (Ok(_), Ok(foreign)) => to_the_end(&foreign, Some(plain())),
        },
    }
    .run();
}

#[test]
fn mutated_pytorch_legacy() {
    Target {
        name: "PyTorch legacy",
        seeds: vec![fixture("plain-legacy.pth")],
        tokens: pickle_tokens(),
        text: false,
        repair: &|_| (),
        stages: &STAGES,
        deep: (1, 0.3),
        parse: &|bytes| match (pth::is_legacy(bytes), read(bytes)) {
            (false, Err(error)) => Reached::refused(0, error),
            (true, Err(error)) => {
                let error = error.to_string();
                Reached::refused(usize::from(!error.contains("pickle")), error)
            }
            (_, Ok(foreign)) => to_the_end(&foreign, Some(plain())),
        },
    }
    .run();
}

/// Makes the header's length and the file's length right, as far as the header is still JSON.
fn repair_safetensors(bytes: &mut Vec<u8>) {
    if bytes.len() < 8 {
        return;
    }
    let mut values = serde_json::Deserializer::from_slice(&bytes[8..]).into_iter::<serde_json::Value>();
    let Some(Ok(serde_json::Value::Object(root))) = values.next() else { return };
    let mut end = 8 + values.byte_offset();
    while bytes.get(end) == Some(&b' ') {
        end += 1;
    }
    put(bytes, 0, &(end as u64 - 8).to_le_bytes());
    let last = root.values().filter_map(|e| e["data_offsets"][1].as_u64()).filter(|&n| n < 1 << 16).max();
    bytes.resize(end + last.unwrap_or(0) as usize, 0);
}

#[test]
fn mutated_safetensors() {
    Target {
        name: "safetensors",
        seeds: vec![fixture("plain-f16.safetensors")],
        tokens: [&b"\"dtype\":\"F64\""[..], b"\"BF16\"", b"\"shape\":[]", b"[0,4]", b"null", b"[[[["]
            .map(Vec::from)
            .to_vec(),
        text: true,
        repair: &repair_safetensors,
        stages: &STAGES,
        deep: (2, 0.1),
        parse: &|bytes| match safetensors_file::read(bytes) {
            Err(error) => refusal(usize::from(!error.contains("header")), error),
            Ok(foreign) => to_the_end(&foreign, Some(plain())),
        },
    }
    .run();
}

/// Tags and lengths of messages.
fn wire_tokens() -> Vec<Vec<u8>> {
    [
        &b"\x0a\x00"[..],
        b"\x12\x02\x08\x01",
        b"\x2a\x04\x00\x00\x80\x7f",
        b"\x3a\x02\x0a\x00",
        b"\xa2\x06\x00",
        b"\x4a\x04\x00\x00\xc0\x7f",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"LRN",
        b"Slice",
    ]
    .map(Vec::from)
    .to_vec()
}

#[test]
fn mutated_caffemodels() {
    Target {
        name: "Caffe",
        seeds: vec![fixture("caffe-v1.caffemodel"), fixture("caffe-v2.caffemodel")],
        tokens: wire_tokens(),
        text: false,
        repair: &|_| (),
        stages: &STAGES,
        deep: (2, 0.2),
        parse: &|bytes| match caffemodel::read(bytes) {
            Err(error) => refusal(0, error),
            Ok(foreign) => to_the_end(&foreign, None),
        },
    }
    .run();
}

#[test]
fn mutated_onnx() {
    Target {
        name: "ONNX",
        seeds: vec![fixture("caffe.onnx")],
        tokens: wire_tokens(),
        text: false,
        repair: &|_| (),
        stages: &STAGES,
        deep: (2, 0.2),
        parse: &|bytes| match onnx::read(bytes) {
            Err(error) => refusal(0, error),
            Ok(foreign) => to_the_end(&foreign, None),
        },
    }
    .run();
}

/// An archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let common = |out: &mut Vec<u8>| {
            out.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            out.extend(crc32fast::hash(data).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend([0, 0]);
        };
        directory.extend(b"PK\x01\x02\x14\x00");
        common(&mut directory);
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(b"PK\x03\x04");
        common(&mut file);
        file.extend(name.as_bytes());
        file.extend(*data);
    }
    let start = file.len() as u32;
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn zip_of_pickle(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/data/0", &[0; 16])])
}

/// A pickle of {"w": a tensor of these sizes and strides over storage 0 of four elements}.
fn tensor_pickle(elements: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [
        &b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"[..],
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
        elements,
        b"tQK\x00(",
        shape,
        b"t(",
        strides,
        b"t\x89}tRs.",
    ]
    .concat()
}

/// A pickle that would run a command writes no file, whatever opcode it calls with.
#[test]
fn pickles_with_code_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let command = format!("touch {}", mark.display());
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let short_text = |s: &str| [&[0x8c, s.len() as u8], s.as_bytes()].concat();
    let argument = text(&command);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "os.system",
            [b"\x80\x02cos\nsystem\n", &argument[..], b"\x85R."].concat(),
            "refused: GLOBAL os.system",
        ),
        (
            "posix.system",
            [b"\x80\x02cposix\nsystem\n", &argument[..], b"\x85R."].concat(),
            "GLOBAL posix.system",
        ),
        (
            "eval",
            [b"\x80\x02cbuiltins\neval\n", &text("__import__('os').system('true')")[..], b"\x85R."].concat(),
            "refused: GLOBAL builtins.eval",
        ),
        (
            "stack global",
            [b"\x80\x04", &short_text("subprocess")[..], &short_text("call"), b"\x93", &argument, b"\x85R."]
                .concat(),
            "refused: GLOBAL subprocess.call",
        ),
        ("inst", [b"(", &argument[..], b"ios\nsystem\n."].concat(), "refused: INST os.system"),
        ("newobj", b"\x80\x02ccollections\nOrderedDict\n)\x81.".to_vec(), "refused: opcode 0x81"),
        ("build", b"\x80\x02ctorch\nFloatStorage\n}b.".to_vec(), "attributes are set"),
        ("reduce of a storage", b"\x80\x02ctorch\nFloatStorage\n)R.".to_vec(), "with 0 arguments"),
        ("extension", b"\x80\x02\x82\x01.".to_vec(), "refused: opcode 0x82"),
        (
            "a dotted name",
            b"\x80\x02ctorch\n_utils._rebuild_tensor_v2.__globals__\n.".to_vec(),
            "refused: GLOBAL",
        ),
        (
            "numpy",
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.".to_vec(),
            "numpy.core.multiarray._reconstruct",
        ),
    ];
    for (name, pickle, words) in cases {
        refused(&format!("{name}, zip"), &zip_of_pickle(&pickle), &["PyTorch", words], any);
        let mut legacy = fixture("plain-legacy.pth")[..15].to_vec();
        legacy.extend(b"\x80\x02M\xe9\x03.\x80\x02}.");
        legacy.extend(&pickle);
        refused(&format!("{name}, legacy"), &legacy, &["PyTorch", words], any);
    }
    assert!(!mark.exists());
}

#[test]
fn archives_that_lie_are_refused() {
    let good = tensor_pickle(b"K\x04", b"K\x02K\x02", b"K\x02K\x01");
    assert!(pth::read_zip(&zip_of_pickle(&good)).is_ok());
    let big = b"\x8a\x06\x00\x00\x00\x00\x00\x01";
    for (name, pickle, words) in [
        (
            "more elements than bytes",
            tensor_pickle(b"M\x00\x10", b"K\x04", b"K\x01"),
            "should have 4096 elements",
        ),
        (
            "sizes beyond the storage",
            tensor_pickle(b"K\x04", b"K\x05", b"K\x01"),
            "5 elements of a storage of 4",
        ),
        ("a size of 2^40", tensor_pickle(b"K\x04", big, b"K\x00"), "no size"),
        ("a stride beyond", tensor_pickle(b"K\x04", b"K\x02", b"K\x09"), "reaches beyond"),
        ("a size below zero", tensor_pickle(b"K\x04", b"J\xff\xff\xff\xff", b"K\x01"), "no size"),
    ] {
        refused(name, &zip_of_pickle(&pickle), &[words], any);
    }

    let mut bomb = zip_of_pickle(&good);
    let central = places(&bomb, b"PK\x01\x02")[1];
    put(&mut bomb, central + 10, &[8, 0]);
    put(&mut bomb, central + 24, &(1u32 << 31).to_le_bytes());
    refused("a bomb", &bomb, &["archive/data/0 is compressed"], any);

    let mut lying = zip_of_pickle(&good);
    for at in [20, 24] {
        put(&mut lying, central + at, &(1u32 << 30).to_le_bytes());
    }
    refused("a size of a gigabyte", &lying, &["do not fit in the file"], any);

    let mut overlapping = zip_of_pickle(&good);
    let first = places(&overlapping, b"PK\x01\x02")[0];
    let length = overlapping[first + 20..first + 28].to_vec();
    put(&mut overlapping, central + 20, &length);
    put(&mut overlapping, central + 42, &[0; 4]);
    refused("two entries in one place", &overlapping, &["same place"], any);

    let mut many = zip_of_pickle(&good);
    let end = many.len() - 22;
    put(&mut many, end + 10, &[0xff, 0xff]);
    refused("65,535 entries", &many, &["65535 entries"], any);

    let mut flipped = zip_of_pickle(&good);
    let data = places(&flipped, b"archive/data/0")[0] + 14;
    flipped[data] ^= 1;
    refused("a flipped bit", &flipped, &["data/0 is damaged"], any);

    let traversal = zip(&[("../../etc/data.pkl", &good), ("../../etc/data/0", &[0; 16])]);
    // Names are compared, and never opened: where they point does not matter.
    assert!(pth::read_zip(&traversal).is_ok());
    refused("no pickle", &zip(&[("../../../etc/passwd", b"x")]), &["no data.pkl"], any);

    let deep: Vec<u8> = [&b"\x80\x02"[..], &b"(".repeat(100_000), &b"t".repeat(100_000), b"."].concat();
    refused("tuples 100,000 deep", &zip_of_pickle(&deep), &["no named tensors"], any);
    let wide: Vec<u8> = [&b"\x80\x02"[..], &b"}".repeat(4 << 20), b"."].concat();
    refused("four million dictionaries", &zip_of_pickle(&wide), &["more than 200000 objects"], any);
    let memo: Vec<u8> = (0..500_000u32).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
    refused(
        "half a million memories",
        &zip_of_pickle(&[b"\x80\x02}", &memo[..], b"."].concat()),
        &["remembered"],
        any,
    );
    // Each list holds the one before twice: 2^60 elements for whoever follows them.
    let laughs: Vec<u8> =
        [&b"\x80\x02}X\x01\x00\x00\x00a)"[..], &b"q\x00h\x00\x86".repeat(60), b"s."].concat();
    refused("a billion laughs", &zip_of_pickle(&laughs), &["no named tensors"], any);
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn safetensors_that_lie_are_refused() {
    let spaces = format!("{{{}}}", " ".repeat(100_000_000));
    refused("a header of 100 MB", &safetensors(&spaces, 0), &["header of 100000002 bytes"], any);
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    refused("JSON 100,000 deep", &safetensors(&deep, 0), &["header is not understood"], any);
    let metadata = format!("{{\"__metadata__\":{}", "{\"a\":".repeat(100_000));
    refused("metadata 100,000 deep", &safetensors(&metadata, 0), &["header is not understood"], any);
    let one = |shape: &str, offsets: &str| {
        format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    for (name, header, words) in [
        ("a tensor beyond the file", one("[4]", "[0,16]"), "are not in the file"),
        ("sizes that are not the bytes'", one("[3]", "[0,8]"), "need 12 bytes, the file has 8"),
        ("2^64 elements", one("[4294967296,4294967296]", "[0,8]"), "not possible"),
        ("zero times too much", one("[0,18446744073709551615]", "[0,0]"), "not possible"),
        ("backwards", one("[1]", "[8,4]"), "are not in the file"),
        ("a hole", one("[1]", "[4,8]"), "hole"),
        ("more bytes than tensors", one("[1]", "[0,4]"), "4 bytes follow"),
        (
            "overlapping",
            one("[2]", "[0,8]")
                .replace("}}", "},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}"),
            "overlap",
        ),
        (
            "one name twice",
            one("[1]", "[0,4]")
                .replace("}}", "},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}"),
            "two tensors a",
        ),
    ] {
        refused(name, &safetensors(&header, 8), &["safetensors", words], any);
    }
    let entries: Vec<String> = (0..60_000)
        .map(|i| format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}"))
        .collect();
    refused(
        "60,000 tensors",
        &safetensors(&format!("{{{}}}", entries.join(",")), 4),
        &["more than 4096 tensors"],
        any,
    );
    let nan =
        safetensors(&one("[1]", "[0,4]"), 0).into_iter().chain(f32::NAN.to_le_bytes()).collect::<Vec<_>>();
    refused("no network at all", &nan, &["no network of `alexnet nets`"], any);
}

#[test]
fn messages_that_lie_are_refused() {
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for (name, begin) in [("Caffe", &b"\x0a\x01x\x12"[..]), ("ONNX", b"\x08\x07\x3a")] {
        let lying = [begin, &long[..]].concat();
        refused(&format!("{name}: a length of 2^63"), &lying, &[name, "where 0 are left"], any);
    }
    // A message in a message in a message: only as deep as its reader looks.
    let mut nested = vec![];
    for _ in 0..20_000 {
        let mut outer = vec![0x12];
        let mut length = nested.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(&nested);
        nested = outer;
    }
    refused("Caffe: 20,000 messages deep", &nested, &["Caffe"], any);
    let model = |graph: &[u8]| {
        let mut file = vec![0x08, 0x07, 0x3a];
        let mut length = graph.len();
        while length >= 0x80 {
            file.push(length as u8 | 0x80);
            length >>= 7;
        }
        file.push(length as u8);
        file.extend(graph);
        file
    };
    refused(
        "ONNX: a million empty nodes",
        &model(&[0x0a, 0].repeat(1_000_000)),
        &["more than 2048 nodes"],
        any,
    );
    refused("ONNX: a million empty tensors", &model(&[0x2a, 0].repeat(1_000_000)), &["no weights"], any);
    refused("Caffe: a million empty layers", &[0x12, 0].repeat(1_000_000), &["more than 1024 layers"], any);
    let blob = [&[0x12u8, 0x80, 0x80, 0x40][..], &[0x32, 0].repeat(1 << 19)].concat();
    refused("Caffe: half a million empty blobs", &blob, &["more than 4096 tensors"], any);
    let external = model(b"\x2a\x06\x08\x01\x10\x01\x70\x01");
    refused("ONNX: weights in another file", &external, &["another file, which is not opened"], any);
    for (name, bytes, words) in [
        ("an empty file", &b""[..], "empty"),
        ("a page of the web", b"<!DOCTYPE html>", "page of the web"),
        ("HDF5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a bare pickle", b"\x80\x02cos\nsystem\n", "bare pickle"),
        ("junk", b"\xde\xad\xbe\xef\xde\xad\xbe\xef\xde\xad", "no format that is known"),
    ] {
        refused(name, bytes, &[words], any);
    }
}
