//! `alexnet weights` and `alexnet pull` as a user calls them. The server that is pulled from is on loopback.

mod common;

use common::{alexnet, finish, run};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../alexnet/tests/weights")
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

/// How a server answers.
#[derive(Clone, Copy)]
enum Manner {
    /// Parts on request; the first connection is cut in the middle.
    Cuts,
    /// The whole file, whatever is asked for.
    Whole,
    /// 404.
    Missing,
    /// One byte more than there should be.
    Long,
}

/// Serves `body` until the tests end; gives the address and the list of ranges that were asked for.
fn serve(body: Vec<u8>, manner: Manner) -> (String, Arc<Mutex<Vec<Option<usize>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/w.pth", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut from = None;
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                if line.is_empty() {
                    break;
                }
                if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse().ok();
                }
            }
            log.lock().unwrap().push(from);
            let start = if matches!(manner, Manner::Cuts) { from.unwrap_or(0) } else { 0 };
            let head = match manner {
                Manner::Missing => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_string(),
                _ if start > 0 => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\nContent-Length: {}\r\n",
                    body.len() - 1,
                    body.len(),
                    body.len() - start
                ),
                _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len()),
            };
            let end = if matches!(manner, Manner::Cuts) && i == 0 { body.len() / 2 } else { body.len() };
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
            if !matches!(manner, Manner::Missing) {
                let _ = stream.write_all(&body[start..end]);
            }
        }
    });
    (address, asked)
}

fn table(folder: &Path, url: &str, body: &[u8], sha256: Option<&str>) -> String {
    let digits: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let entry = serde_json::json!([{
        "name": "test", "url": url, "bytes": body.len(), "sha256": sha256.unwrap_or(&digits)
    }]);
    let path = folder.join("table.json");
    std::fs::write(&path, entry.to_string()).unwrap();
    text(&path)
}

fn body() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let body = body();
    let (url, asked) = serve(body.clone(), Manner::Cuts);
    let out = folder.path().join("w.pth");
    let table = table(folder.path(), &url, &body, None);
    let words = ["pull", "test", &text(&out), "--table", &table];
    let done = run(&words);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(std::fs::read(&out).unwrap(), body);
    assert!(done.stdout.contains("fetched and checked"), "{}", done.stdout);
    assert_eq!(*asked.lock().unwrap(), [None, Some(body.len() / 2)]);
    assert!(!folder.path().join("w.pth.part").exists());

    // There already: nothing is asked for. Damaged meanwhile: said, and left alone.
    assert!(run(&words).stdout.contains("was there already"));
    assert_eq!(asked.lock().unwrap().len(), 2);
    std::fs::write(&out, b"damaged").unwrap();
    let done = run(&words);
    assert!(done.code == 3 && done.stderr.contains("it has 7 bytes, not 300000"), "{}", done.stderr);
    assert_eq!(std::fs::read(&out).unwrap(), b"damaged");
}

#[test]
fn a_part_of_an_earlier_run_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let body = body();
    for (manner, expected) in [(Manner::Cuts, 250_000), (Manner::Whole, 250_000)] {
        let (url, asked) = serve(body.clone(), manner);
        // The first connection of a server that cuts is another one's.
        if let Manner::Cuts = manner {
            let _ =
                std::net::TcpStream::connect(url.trim_start_matches("http://").trim_end_matches("/w.pth"))
                    .and_then(|mut s| s.write_all(b"GET / HTTP/1.1\r\n\r\n"));
        }
        let out = folder.path().join("again.pth");
        std::fs::write(folder.path().join("again.pth.part"), &body[..expected]).unwrap();
        let table = table(folder.path(), &url, &body, None);
        let done = run(&["pull", "test", &text(&out), "--table", &table]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(std::fs::read(&out).unwrap(), body);
        assert_eq!(*asked.lock().unwrap().last().unwrap(), Some(expected));
        std::fs::remove_file(out).unwrap();
    }
}

#[test]
fn what_is_not_as_published_is_refused_and_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let body = body();
    let mut long = body.clone();
    long.push(0);
    for (served, manner, sha256, words) in [
        (body.clone(), Manner::Whole, Some("0".repeat(64)), "its SHA-256 is"),
        (long, Manner::Long, None, "more than the 300000 bytes"),
        (body.clone(), Manner::Missing, None, "the server answers 404"),
        (body.clone(), Manner::Whole, Some("7be5be79".into()), "not 64 hexadecimal digits"),
    ] {
        let (url, _) = serve(served, manner);
        let table = table(folder.path(), &url, &body, sha256.as_deref());
        let out = folder.path().join("bad.pth");
        let done = run(&["pull", "test", &text(&out), "--table", &table]);
        assert!(done.code == 3 && done.stderr.contains(words), "{words}: {}", done.stderr);
        assert!(!out.exists() && !folder.path().join("bad.pth.part").exists(), "{words}");
    }
    let done = run(&["pull", "torchvison"]);
    assert!(done.code == 2 && done.stderr.contains("did you mean torchvision?"), "{}", done.stderr);
    let list = run(&["pull"]);
    assert!(list.code == 0 && list.stdout.contains("torchvision"), "{}", list.stdout);
}

#[test]
fn the_way_in_and_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let fixture = |name: &str| text(&fixtures().join(name));
    let info = run(&["weights", "info", &fixture("caffe-v2.caffemodel"), "--json"]).json();
    assert_eq!(
        (info["format"].as_str(), info["channels"].as_str()),
        (Some("Caffe model"), Some("blue, green, red"))
    );
    assert_eq!(info["tensors"][0]["shape"], serde_json::json!([4, 3, 3, 3]));

    // Names, for three outputs; a wrong number of them is refused.
    std::fs::write(folder.path().join("names.txt"), "ant\nbee\ncat\n").unwrap();
    std::fs::write(folder.path().join("four.txt"), "ant\nbee\ncat\ndog\n").unwrap();
    let done = run(&[
        "weights",
        "import",
        &fixture("plain-zip.pth"),
        &at("x"),
        "--net",
        &fixture("plain.toml"),
        "--classes",
        &at("four.txt"),
    ]);
    assert!(done.code == 2 && done.stderr.contains("4 class names for 3 outputs"), "{}", done.stderr);
    let done = run(&[
        "weights",
        "import",
        &fixture("plain-zip.pth"),
        &at("model.safetensors"),
        "--net",
        &fixture("plain.toml"),
        "--classes",
        &at("names.txt"),
        "--mean",
        "120,110,100",
    ]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let info = run(&["weights", "info", &at("model.safetensors")]);
    assert!(info.stdout.contains("origin         plain-zip.pth"), "{}", info.stdout);
    assert!(info.stdout.contains("mean [120.0, 110.0, 100.0]"), "{}", info.stdout);

    let picture = folder.path().join("p.png");
    common::picture(1, 0).save(&picture).unwrap();
    let top = |model: &str| {
        let done = run(&["predict", model, &text(&picture), "--format", "jsonl"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.json()["predictions"].clone()
    };
    let first = top(&at("model.safetensors"));
    assert!(["ant", "bee", "cat"].contains(&first[0]["class"].as_str().unwrap()));
    // Preprocessing and names travel through the formats that can hold them.
    for file in ["out.safetensors", "out.onnx"] {
        let done = run(&["weights", "export", &at("model.safetensors"), &at(file)]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let back = at("back.safetensors");
        let done = run(&["weights", "import", &at(file), &back]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(top(&back), first, "{file}");
    }
    let done = run(&["weights", "export", &at("model.safetensors"), &at("out.caffemodel")]);
    assert!(done.code == 0 && folder.path().join("out.prototxt").is_file(), "{}", done.stderr);
    let done = run(&["weights", "export", &at("model.safetensors"), &at("out.xyz")]);
    assert!(done.code == 2 && done.stderr.contains("--format"), "{}", done.stderr);
    let done = run(&["weights", "import", &fixture("plain-zip.pth"), &at("x")]);
    assert!(done.code == 4 && done.stderr.contains("no network of `alexnet nets`"), "{}", done.stderr);
    let done = run(&["weights", "info", &fixture("expected.json")]);
    assert!(done.code == 4 && done.stderr.contains("no format that is known"), "{}", done.stderr);
    let done = finish(alexnet().args(["train", "--resume", &at("model.safetensors")]));
    assert_ne!(done.code, 0);
}
