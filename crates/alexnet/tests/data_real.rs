//! The whole way from a folder of real photographs to batches, where the photographs are at hand.

use alexnet::data::{
    Augment, Loader, LoaderConfig, Pack, PackOptions, Preprocess, Sample, SplitRule, Stats, View, split,
};
use alexnet::exec::contract::InputLayout;
use alexnet::net::Shape;
use alexnet_kernels::threads::Threads;
use std::path::Path;
use std::sync::Arc;

#[test]
fn caltech_is_read_split_and_loaded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/caltech101");
    if !root.is_dir() {
        println!("skipped: {} is not there", root.display());
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let options = PackOptions { side: 64, ..Default::default() };
    let begin = std::time::Instant::now();
    let pack = Pack::for_folder(&root, &options, Some(cache.path()), &mut |_, _| {}).unwrap();
    println!("packed {} pictures in {:?}", pack.len(), begin.elapsed());
    assert_eq!((pack.len(), pack.classes().len(), pack.unreadable().len()), (5293, 101, 0));
    let begin = std::time::Instant::now();
    let again =
        Pack::for_folder(&root, &options, Some(cache.path()), &mut |_, _| panic!("decoded again")).unwrap();
    println!("opened again in {:?}", begin.elapsed());
    assert_eq!(again.fingerprint(), pack.fingerprint());
    again.verify().unwrap();

    let sides = split(&pack, &SplitRule::TrainPerClass { n: 30, seed: 1 }).unwrap();
    assert_eq!(sides.train.len(), 30 * 101);
    assert_eq!(sides.val.len(), 5293 - 30 * 101);
    let stats = Stats::compute(&pack, &sides.train, 2).unwrap();
    assert!(stats.channel_mean.iter().all(|m| (80.0..180.0).contains(m)), "{:?}", stats.channel_mean);

    let crop = 56;
    let config = LoaderConfig {
        pack: Arc::new(pack),
        layout: InputLayout::nhwc(128, Shape { c: 3, h: crop, w: crop }),
        preprocess: Arc::new(Preprocess::paper(64, crop, stats.mean_picture)),
        augment: Augment::default(),
        seed: 1,
    };
    let mut loader = Loader::new(config);
    loader.begin(Sample::of(&sides.train, &[View::Centre]), 0, 0);
    let (mut sum, mut n) = (0.0f64, 0usize);
    let mut threads = Threads::new(2);
    while let Some(batch) = loader.next(&mut threads) {
        sum += batch.input.pixels().as_f32().iter().map(|&v| f64::from(v)).sum::<f64>();
        n += batch.samples.len() * crop * crop * 3;
    }
    // The mean of the training pictures, less the mean picture.
    assert!((sum / n as f64).abs() < 1e-2, "{}", sum / n as f64);
}
