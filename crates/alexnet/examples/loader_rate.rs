//! How fast the loader makes batches from packs of every kind, a thread: `loader_rate FOLDER [SECONDS]`. The folder has
//! class folders with pictures; packs are made in a folder for temporary files. Each loop goes over all pictures, so that
//! everything is in memory but the caches of the processor.

use alexnet::data::{
    Augment, Form, Keep, Loader, LoaderConfig, Pack, PackOptions, Preprocess, Sample, list_folder,
};
use alexnet::exec::contract::{InputLayout, PixelType};
use alexnet::net::Shape;
use alexnet_kernels::threads::Threads;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

fn main() -> alexnet::Result<()> {
    let mut words = std::env::args().skip(1);
    let Some(folder) = words.next().map(PathBuf::from) else {
        eprintln!("loader_rate FOLDER [SECONDS]");
        std::process::exit(2);
    };
    let seconds: f64 = words.next().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let listing = list_folder(&folder)?;
    let out = std::env::temp_dir().join(format!("loader-rate-{}", std::process::id()));
    let crops = Augment::default();
    let areas = Augment { area: Some([0.08, 1.0]), ..Augment::default() };
    // As the first convolution of AlexNet reads them: in f32, columns folded by four in blocks of 32; in bf16, picture by picture.
    let shape = Shape { c: 3, h: 224, w: 224 };
    let in_f32 = InputLayout { block: 32, fold: 4, pad: 2, columns: 58, ..InputLayout::nhwc(128, shape) };
    let in_bf16 = InputLayout { values: PixelType::Bf16, ..InputLayout::nhwc(128, shape) };
    for (keep, form, augment, layout, what) in [
        (Keep::Square, Form::Raw, &crops, &in_f32, "raw squares, random crops"),
        (Keep::Square, Form::Raw, &crops, &in_bf16, "raw squares, random crops, in bf16"),
        (Keep::Square, Form::Raw, &areas, &in_f32, "raw squares, random areas"),
        (Keep::Square, Form::Jpeg, &crops, &in_f32, "JPEG squares, random crops"),
        (Keep::Whole, Form::Raw, &areas, &in_f32, "raw whole pictures, random areas"),
        (Keep::Original, Form::Raw, &areas, &in_f32, "originals, random areas"),
    ] {
        let options = PackOptions { keep, form, ..Default::default() };
        let pack = Arc::new(Pack::build(&listing, &options, &out, &mut |_, _| {})?);
        let preprocess = Arc::new(Preprocess { keep, ..Preprocess::torchvision() });
        let mut loader = Loader::new(LoaderConfig {
            pack: pack.clone(),
            layout: layout.clone(),
            preprocess,
            augment: augment.clone(),
            seed: 0,
        });
        let mut threads = Threads::new(1);
        let pictures: Vec<u32> = (0..pack.len() as u32).collect();
        let (mut best, begun) = (0f64, Instant::now());
        for epoch in 0.. {
            let start = Instant::now();
            loader.begin(Sample::shuffled(&pictures, 0, epoch), epoch, 0);
            while loader.next(&mut threads).is_some() {}
            best = best.max(pictures.len() as f64 / start.elapsed().as_secs_f64());
            if begun.elapsed().as_secs_f64() > seconds {
                break;
            }
        }
        println!("{what}: {best:.0} pictures/s on one thread (best of the loops)");
    }
    let _ = std::fs::remove_file(&out);
    Ok(())
}
