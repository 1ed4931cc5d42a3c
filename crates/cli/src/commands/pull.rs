//! `alexnet pull`: public weights by name.

use crate::args::Pull;
use crate::download::{Known, fetch};
use crate::failure::Outcome;
use crate::plan;
use crate::progress::Progress;
use crate::terminal::{bytes, print_line, table};
use alexnet::data::default_cache_dir;
use alexnet::error::nearest;
use alexnet::{Error, Result};

/// Public weights whose size and SHA-256 are published: torchvision's in the file's name and by many who fetched it, the
/// model zoo's in its Git LFS pointer.
fn built_in() -> Vec<Known> {
    let known = |name: &str, url: &str, bytes, sha256: &str, about: &str| Known {
        name: name.into(),
        url: url.into(),
        bytes,
        sha256: sha256.into(),
        about: about.into(),
    };
    vec![
        known(
            "torchvision",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            244_408_911,
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            "torchvision's AlexNet_Weights.IMAGENET1K_V1, 56.5 % top-1 on ImageNet",
        ),
        known(
            "bvlc-alexnet-onnx",
            "https://media.githubusercontent.com/media/onnx/models/main/validated/vision/classification/alexnet/model/bvlcalexnet-12.onnx",
            243_863_787,
            "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
            "Caffe's BVLC AlexNet as ONNX, opset 12, from the ONNX model zoo",
        ),
    ]
}

fn table_of(args: &Pull) -> Result<Vec<Known>> {
    let Some(path) = &args.table else { return Ok(built_in()) };
    let text = plan::read_text(path, "table of weights")?;
    serde_json::from_str(&text).map_err(|e| Error::Config(format!("{}: {e}", path.display())))
}

/// Runs `alexnet pull`.
pub fn run(args: &Pull) -> Outcome {
    let all = table_of(args)?;
    let Some(name) = &args.name else {
        let mut rows = vec![["name", "size", "what"].map(String::from).to_vec()];
        rows.extend(all.iter().map(|k| vec![k.name.clone(), bytes(k.bytes), k.about.clone()]));
        return Ok(print_line(&table(&rows, &[false, true, false]))?);
    };
    let Some(known) = all.iter().find(|k| k.name == *name) else {
        let hint = match nearest(name, all.iter().map(|k| k.name.as_str())) {
            Some(near) => format!("did you mean {near}?"),
            None => {
                format!("there are {}", all.iter().map(|k| k.name.as_str()).collect::<Vec<_>>().join(", "))
            }
        };
        return Err(Error::Config(format!("no public weights are called {name}; {hint}")).into());
    };
    let target = match &args.out {
        Some(out) => {
            plan::can_create("OUT", out)?;
            out.clone()
        }
        None => {
            let folder = default_cache_dir().join("weights");
            std::fs::create_dir_all(&folder)
                .map_err(|e| Error::Config(format!("{} cannot be made: {e}", folder.display())))?;
            let file = known.url.rsplit('/').next().filter(|f| !f.is_empty()).unwrap_or("weights");
            folder.join(file)
        }
    };
    let mut progress = Progress::new("downloading");
    let mib = |n: u64| (n >> 20) as usize;
    let fetched = fetch(known, &target, &mut |got, all| progress.update(mib(got), mib(all), "MiB"))?;
    progress.finish();
    let words = if fetched { "fetched and checked" } else { "was there already, and is right" };
    print_line(&format!("{} {words}: size and SHA-256", target.display()))?;
    print_line(&format!("next: alexnet weights import {} MODEL.safetensors", target.display()))?;
    Ok(())
}
