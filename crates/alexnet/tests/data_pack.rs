//! Packs of every kind: the same bytes however they are made, the same pictures however they are kept, and none that
//! lies is believed.

use alexnet::data::pack::Shard;
use alexnet::data::resize::Squarer;
use alexnet::data::{
    Augment, BuildOptions, Filter, Fit, Form, Keep, Listing, Loader, LoaderConfig, Pack, PackOptions,
    Preprocess, Sample, SplitRule, Stats, View, list_folder, split,
};
use alexnet::exec::contract::InputLayout;
use alexnet::net::Shape;
use alexnet::rng::{Purpose, Stream};
use alexnet_kernels::threads::Threads;
use image::{ImageFormat, RgbImage};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::{TempDir, tempdir};

const SIDE: usize = 16;

/// A folder with pictures of several sizes in two classes, one of which cannot be decoded; with or without a split.
fn pictures(n: u32, sides: &[&str]) -> TempDir {
    let root = tempdir().unwrap();
    for side in sides {
        for i in 0..n {
            let (w, h) = [(24, 18), (17, 31), (40, 16), (16, 16), (50, 20)][i as usize % 5];
            let pixel = |x: u32, y: u32| {
                let v = |c: u32| ((x * (5 + c) + y * (7 + i % 11) + i * 13 + c * 40) % 256) as u8;
                image::Rgb([v(0), v(1) / 2, v(2)])
            };
            let format = if i % 3 == 0 { ImageFormat::Png } else { ImageFormat::Jpeg };
            let path = root.path().join(side).join(["a", "b"][i as usize % 2]).join(format!("{i:04}.jpg"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::from_fn(w, h, pixel).save_with_format(&path, format).unwrap();
            if i == 7 {
                fs::write(&path, b"no picture").unwrap();
            }
        }
    }
    root
}

fn options(keep: Keep, form: Form) -> PackOptions {
    PackOptions { side: SIDE, keep, form, ..Default::default() }
}

const KINDS: [(Keep, Form); 5] = [
    (Keep::Square, Form::Raw),
    (Keep::Square, Form::Jpeg),
    (Keep::Whole, Form::Raw),
    (Keep::Whole, Form::Jpeg),
    (Keep::Original, Form::Raw),
];

fn build(listing: &Listing, options: &PackOptions, build: &BuildOptions, out: &Path) -> Pack {
    Pack::build_with(listing, options, build, out, &mut |_, _| {}).unwrap()
}

#[test]
fn threads_pieces_and_shards_make_the_same_bytes() {
    let root = pictures(53, &["train", "val"]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    for (keep, form) in KINDS {
        let options = options(keep, form);
        let whole = work.path().join("whole");
        let pack = build(&listing, &options, &BuildOptions::default(), &whole);
        assert_eq!((pack.len(), pack.unreadable().len()), (106, 2), "{keep:?} {form:?}");
        let bytes = fs::read(&whole).unwrap();
        let other = work.path().join("other");
        for (threads, piece) in [(1, 1024), (1, 1), (3, 10), (5, 106)] {
            build(&listing, &options, &BuildOptions { threads, piece, ..Default::default() }, &other);
            assert!(
                fs::read(&other).unwrap() == bytes,
                "{keep:?} {form:?}: {threads} threads, pieces of {piece}"
            );
        }
        // Three machines, their parts put together in another order.
        let parts: Vec<PathBuf> = (1..=3)
            .map(|part| {
                let path = work.path().join(format!("part-{part}"));
                let shard = Some(Shard { part, of: 3 });
                let pack = build(&listing, &options, &BuildOptions { shard, ..Default::default() }, &path);
                assert_eq!(pack.shard(), shard);
                path
            })
            .collect();
        let text = Pack::open(&parts[0]).unwrap_err().to_string();
        assert!(text.contains("part 1/3") && text.contains("data join"), "{text}");
        let order = [parts[2].clone(), parts[0].clone(), parts[1].clone()];
        Pack::join(&order, &other, &mut |_, _| {}).unwrap();
        assert!(fs::read(&other).unwrap() == bytes, "{keep:?} {form:?}: joined");
        let refused = |parts: &[PathBuf]| Pack::join(parts, &other, &mut |_, _| {}).unwrap_err().to_string();
        assert!(refused(&order[..2]).contains("2/3 is missing"));
        assert!(refused(&[&order[..], &order[..1]].concat()).contains("both part 3/3"));
        assert!(refused(&[order[0].clone(), whole.clone()]).contains("not parts of the same set"));
        assert!(refused(&[whole]).contains("not a part"));
        // Saved again, the same.
        pack.save(&other).unwrap();
        assert!(fs::read(&other).unwrap() == bytes);
        let left = fs::read_dir(work.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
        assert_eq!(left.count(), 0, "something was left behind");
    }
}

#[test]
fn more_kept_shows_the_same_squares_and_statistics() {
    let root = pictures(30, &["train", "val"]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let mut squarer = Squarer::default();
    for resize in [Filter::Bilinear, Filter::AreaCubic] {
        let packs = KINDS.map(|(keep, form)| {
            let path = work.path().join(format!("{keep:?}-{form:?}"));
            let options = PackOptions { resize, ..options(keep, form) };
            build(&listing, &options, &BuildOptions::default(), &path)
        });
        let train = split(&packs[0], &SplitRule::Given).unwrap().train;
        let every: Vec<u32> = (0..packs[0].len() as u32).collect();
        for pack in &packs {
            let lossless = pack.options().form == Form::Raw;
            for i in 0..pack.len() {
                let Some(frame) = pack.frame(i, Keep::Square, &mut squarer) else {
                    assert!(!packs[0].is_readable(i));
                    continue;
                };
                let (got, want) = (frame.unwrap().to_pixels(), packs[0].picture(i).unwrap());
                if lossless {
                    assert!(got == want, "{:?}: {}", pack.options(), pack.path(i));
                } else {
                    // Chroma is halved, which these small pictures with their sharp edges show; lightness is kept.
                    let light = |p: &[u8]| {
                        0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])
                    };
                    let pairs = got.chunks_exact(3).zip(want.chunks_exact(3));
                    let mean =
                        pairs.map(|(a, b)| (light(a) - light(b)).abs()).sum::<f64>() / (SIDE * SIDE) as f64;
                    assert!(mean < 5.0, "{}: {mean}", pack.path(i));
                }
            }
            // Those of the pass that made the pack are those of reading it again.
            let stored = Stats::compute(pack, &train, 1).unwrap();
            let twice: Vec<u32> = train.iter().chain(&train).copied().collect();
            let read = Stats::compute(pack, &twice, 3).unwrap();
            assert_eq!(stored, read);
            assert_ne!(stored, Stats::compute(pack, &every[..7], 2).unwrap());
            if lossless {
                assert_eq!(stored, Stats::compute(&packs[0], &train, 1).unwrap());
            }
        }
    }
}

/// All batches, as bits.
fn load(pack: &Arc<Pack>, keep: Keep, augment: &Augment, views: &[View], threads: usize) -> Vec<Vec<u32>> {
    let shape = Shape { c: 3, h: 12, w: 12 };
    let preprocess = Preprocess { side: SIDE, crop: 12, keep, ..Preprocess::torchvision() };
    let mut loader = Loader::new(LoaderConfig {
        pack: pack.clone(),
        layout: InputLayout { block: 4, ..InputLayout::nhwc(8, shape) },
        preprocess: Arc::new(preprocess),
        augment: augment.clone(),
        seed: 3,
    });
    loader.begin(Sample::of(&(0..pack.len() as u32).collect::<Vec<_>>(), views), 1, 0);
    let mut all = Vec::new();
    let mut threads = Threads::new(threads);
    while let Some(batch) = loader.next(&mut threads) {
        assert!(batch.damaged.is_empty());
        all.push(batch.input.pixels().as_f32().iter().map(|v| v.to_bits()).collect());
    }
    all
}

#[test]
fn the_loader_shows_the_same_views_however_pictures_are_kept() {
    let root = pictures(30, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let packs = [Keep::Square, Keep::Whole, Keep::Original].map(|keep| {
        let path = work.path().join(format!("{keep:?}"));
        Arc::new(build(&listing, &options(keep, Form::Raw), &BuildOptions::default(), &path))
    });
    let crops = Augment::default();
    let areas = Augment { area: Some([0.3, 1.0]), ..Augment::default() };
    let square = load(&packs[0], Keep::Square, &crops, &View::TEN, 1);
    for pack in &packs {
        assert!(load(pack, Keep::Square, &crops, &View::TEN, 3) == square, "ten views");
        for augment in [&crops, &areas] {
            let train = |pack, threads| load(pack, Keep::Square, augment, &[View::Train], threads);
            assert!(train(pack, 2) == train(&packs[0], 1), "crops of the square");
        }
    }
    // Crops of the whole picture: another draw than from the square, the same from originals brought to the size.
    let whole = |pack, threads| load(pack, Keep::Whole, &crops, &[View::Train], threads);
    assert!(whole(&packs[1], 1) == whole(&packs[2], 3));
    assert!(whole(&packs[1], 1) != load(&packs[0], Keep::Square, &crops, &[View::Train], 1));
    // Parts of random area are taken from the full picture if the original is kept.
    let original = load(&packs[2], Keep::Original, &areas, &[View::Train], 1);
    assert!(original == load(&packs[2], Keep::Original, &areas, &[View::Train], 4));
    assert!(original != load(&packs[2], Keep::Whole, &areas, &[View::Train], 1));
    assert!(
        load(&packs[1], Keep::Whole, &areas, &[View::Train], 1)
            == load(&packs[2], Keep::Whole, &areas, &[View::Train], 2)
    );
}

#[test]
fn what_keeps_less_than_the_recipe_wants_is_refused() {
    let has = options(Keep::Square, Form::Jpeg);
    let wants = |keep| options(keep, Form::Raw);
    has.serves(&wants(Keep::Square)).unwrap();
    assert!(has.serves(&wants(Keep::Whole)).unwrap_err().contains("Whole is needed"));
    options(Keep::Original, Form::Raw).serves(&wants(Keep::Whole)).unwrap();
    let cubic = PackOptions { resize: Filter::Cubic, ..has.clone() };
    assert!(has.serves(&cubic).unwrap_err().contains("Cubic is needed"));
    for bad in [
        PackOptions { side: 0, ..has.clone() },
        options(Keep::Original, Form::Jpeg),
        PackOptions { fit: Fit::Warp, ..options(Keep::Whole, Form::Raw) },
    ] {
        assert_eq!(bad.check().unwrap_err().exit_code(), 2);
    }
    for (text, good) in
        [("1/1", true), ("4/4", true), ("0/4", false), ("5/4", false), ("x", false), ("1/", false)]
    {
        assert_eq!(text.parse::<Shard>().is_ok(), good, "{text}");
    }
}

#[test]
fn a_pack_of_more_than_100_gb_is_asked_for() {
    let root = pictures(10, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let side = 60_000;
    let huge = PackOptions { side, ..options(Keep::Square, Form::Raw) };
    let estimate = Pack::estimate(&listing, &huge, None).unwrap();
    assert_eq!((estimate.bytes, estimate.exact), (10 * 3 * 60_000 * 60_000, true));
    let error = Pack::build(&listing, &huge, &work.path().join("p"), &mut |_, _| {}).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("--large"), "{error}");
    assert!(error.to_string().contains("100.6 GiB") && error.to_string().contains("--form jpeg"), "{error}");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

/// Offset and length of each tensor in a pack file.
fn tensor(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = |i: usize| header + head[name]["data_offsets"][i].as_u64().unwrap() as usize;
    at(0)..at(1)
}

#[test]
fn packs_of_varied_sizes_that_lie_are_refused() {
    let root = pictures(9, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let file = work.path().join("set");
    for (keep, form) in KINDS {
        build(&listing, &options(keep, form), &BuildOptions::default(), &file);
        let bytes = fs::read(&file).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(&file, bytes).unwrap();
            let code = Pack::open(&file).map(|_| 0).unwrap_or_else(|e| e.exit_code());
            assert_eq!(code, 3, "{keep:?} {form:?}: {what}");
        };
        for length in (0..bytes.len()).step_by(bytes.len() / 60).chain([bytes.len() - 1]) {
            refused(&bytes[..length], "cut");
        }
        let start = bytes.len() - 3000.min(bytes.len() - 4096);
        for at in (start..bytes.len()).step_by(7).chain(tensor(&bytes, "moments")) {
            let mut other = bytes.clone();
            other[at] ^= 0x40;
            refused(&other, "a byte changed");
        }
        if keep == Keep::Square && form == Form::Raw {
            continue;
        }
        for (name, width) in [("offsets", 8), ("sizes", 4)] {
            for at in tensor(&bytes, name).step_by(width) {
                for value in [0, 1, 17, 255, u64::from(u32::MAX), u64::MAX / 2, u64::MAX] {
                    let mut other = bytes.clone();
                    other[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                    if other != bytes {
                        refused(&other, name);
                    }
                }
            }
        }
        // Another format: named, with what to do.
        let text = b"alexnet-pack-2";
        let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
        let mut old = bytes.clone();
        old[at + text.len() - 1] = b'1';
        refused(&old, "format");
        let why = Pack::open(&file).unwrap_err().to_string();
        assert!(why.contains("alexnet-pack-1") && why.contains("make the pack again"), "{why}");
    }
}

#[test]
fn a_pack_that_is_damaged_in_use_loses_the_picture_and_says_so() {
    let root = pictures(9, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let file = root.path().join("../set-in-use");
    let pack = Arc::new(build(&listing, &options(Keep::Square, Form::Jpeg), &BuildOptions::default(), &file));
    // The map shows what is in the file now.
    let bytes = fs::read(&file).unwrap();
    let at = tensor(&bytes, "pictures").start;
    use std::io::{Seek, SeekFrom, Write};
    let mut open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.seek(SeekFrom::Start(at as u64)).unwrap();
    open.write_all(&[0; 64]).unwrap();
    let shape = Shape { c: 3, h: 12, w: 12 };
    let mut loader = Loader::new(LoaderConfig {
        pack: pack.clone(),
        layout: InputLayout { block: 2, ..InputLayout::nhwc(4, shape) },
        preprocess: Arc::new(Preprocess { side: SIDE, crop: 12, ..Preprocess::torchvision() }),
        augment: Augment::none(),
        seed: 3,
    });
    loader.begin(Sample::of(&[0, 1, 2], &[View::Centre]), 0, 0);
    let batch = loader.next(&mut Threads::new(2)).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(batch.weights, [0.0, 1.0, 1.0]);
    assert!(batch.damaged.len() == 1 && batch.damaged[0].path == pack.path(0), "{:?}", batch.damaged);
}

// ---- resuming

const KILLED: &str = "ALEXNET_TEST_PACK";

fn small_pieces() -> BuildOptions {
    BuildOptions { threads: 2, piece: 16, ..Default::default() }
}

/// The build that [`killed_at_any_time_the_pack_is_the_same`] kills: folder and file in the environment.
#[test]
#[ignore = "run by another test"]
fn build_to_be_killed() {
    let paths = std::env::var(KILLED).unwrap();
    let (root, out) = paths.split_once('|').unwrap();
    let listing = list_folder(Path::new(root)).unwrap();
    let mut first = true;
    let mut slowly = |done: usize, _: usize| {
        if std::mem::take(&mut first) {
            println!("begun with {done}");
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    Pack::build_with(
        &listing,
        &options(Keep::Whole, Form::Jpeg),
        &small_pieces(),
        Path::new(out),
        &mut slowly,
    )
    .unwrap();
}

#[test]
fn killed_at_any_time_the_pack_is_the_same() {
    let root = pictures(300, &[""]);
    let work = tempdir().unwrap();
    let (whole, out) = (work.path().join("whole"), work.path().join("out"));
    let options = options(Keep::Whole, Form::Jpeg);
    build(&list_folder(root.path()).unwrap(), &options, &BuildOptions::default(), &whole);
    let bytes = fs::read(&whole).unwrap();
    let run = || {
        let paths = format!("{}|{}", root.path().display(), out.display());
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "build_to_be_killed", "--ignored", "--nocapture"])
            .env(KILLED, paths)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut random = Stream::new(20, Purpose::Synthetic, 0, 0);
    let (mut kills, mut resumed, mut finished) = (0, 0, 0);
    while kills < 20 || finished == 0 {
        let mut child = run();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begun =
            lines.find_map(|line| Some(line.ok()?.split_once("begun with ")?.1.parse::<usize>().unwrap()));
        resumed += usize::from(begun.unwrap() > 0);
        if kills < 20 {
            std::thread::sleep(Duration::from_micros(random.below(25_000) as u64));
            child.kill().unwrap();
        }
        // To the end: a child whose lines nobody reads would fail.
        lines.for_each(drop);
        if child.wait().unwrap().success() {
            assert!(fs::read(&out).unwrap() == bytes, "after {kills} kills");
            fs::remove_file(&out).unwrap();
            finished += 1;
        } else {
            kills += 1;
        }
    }
    assert!(resumed > 0, "no build went on where another was killed");
}

#[test]
fn a_journal_cut_anywhere_is_believed_as_far_as_it_goes() {
    let root = pictures(40, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let (whole, out) = (work.path().join("whole"), work.path().join("out"));
    for (keep, form) in [(Keep::Square, Form::Raw), (Keep::Original, Form::Raw)] {
        let options = options(keep, form);
        build(&listing, &options, &BuildOptions::default(), &whole);
        let bytes = fs::read(&whole).unwrap();
        let (journal, partial) = (work.path().join(".out.journal"), work.path().join(".out.partial"));
        // A build that is stopped in the middle by a panic leaves what a killed one leaves.
        let stopped = || {
            let mut stop = |done: usize, _: usize| assert!(done < 35, "as a test");
            let build = BuildOptions { piece: 10, ..small_pieces() };
            let run = || Pack::build_with(&listing, &options, &build, &out, &mut stop);
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        };
        stopped();
        let (journaled, pictures) = (fs::read(&journal).unwrap(), fs::read(&partial).unwrap());
        let mut begun = Vec::new();
        let mut resume = |what: &str| {
            let mut first = None;
            let build = BuildOptions { piece: 10, ..small_pieces() };
            Pack::build_with(&listing, &options, &build, &out, &mut |done, _| {
                first.get_or_insert(done);
            })
            .unwrap();
            assert!(fs::read(&out).unwrap() == bytes, "{keep:?}: {what}");
            assert!(!journal.exists() && !partial.exists());
            begun.push(first.unwrap());
        };
        resume("as left");
        for length in (0..journaled.len()).step_by(journaled.len() / 12) {
            fs::write(&journal, &journaled[..length]).unwrap();
            fs::write(&partial, &pictures).unwrap();
            resume(&format!("journal of {length} bytes"));
        }
        // Pictures that the journal promises and that are not there, or a journal of something else.
        fs::write(&journal, &journaled).unwrap();
        fs::write(&partial, &pictures[..pictures.len() / 2]).unwrap();
        resume("pictures lost");
        fs::write(&journal, [7; 5000]).unwrap();
        resume("another journal");
        assert_eq!(begun[0], 30);
        assert!(begun.contains(&0) && begun.contains(&10) && begun.contains(&20), "{begun:?}");
        assert_eq!(begun[begun.len() - 2..], [0, 0]);
    }
}

#[test]
fn two_processes_do_not_write_the_same_pack() {
    let root = pictures(12, &[""]);
    let listing = list_folder(root.path()).unwrap();
    let work = tempdir().unwrap();
    let out = work.path().join("out");
    let mut inner = None;
    let options = options(Keep::Square, Form::Raw);
    Pack::build(&listing, &options, &out, &mut |done, _| {
        if done == 3 {
            inner = Some(Pack::build(&listing, &options, &out, &mut |_, _| {}));
        }
    })
    .unwrap();
    let error = inner.unwrap().unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    Pack::open(&out).unwrap().verify().unwrap();
}
