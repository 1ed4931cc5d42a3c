//! What the tests of the program share: running it, drawing small folders of pictures, a network and a recipe that
//! train in a second.
#![allow(dead_code)] // each test file uses a part

use image::{ImageFormat, Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run of the program gave.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The last line of standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("no output: {}", self.stderr));
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"))
    }
}

/// The program in an empty environment but for the cache folder, which lies beside the test's own files.
pub fn alexnet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alexnet"));
    command.env_clear().env("XDG_CACHE_HOME", cache());
    command
}

/// The cache folder of these tests.
pub fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Run {
    finish(alexnet().args(words))
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the program starts");
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The names of the classes that [`pictures`] draws.
pub const CLASSES: [&str; 3] = ["blue", "green", "red"];

/// Draws `n` pictures of each class into `root/CLASS/`: noisy squares of the class's colour.
pub fn pictures(root: &Path, n: u32) {
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..n {
            let format = if i % 2 == 0 { ImageFormat::Png } else { ImageFormat::Jpeg };
            let path = folder.join(format!("{i:03}.{}", format.extensions_str()[0]));
            picture(class, i).save_with_format(path, format).unwrap();
        }
    }
}

/// One picture of a class, 24×20 pixels.
pub fn picture(class: usize, i: u32) -> RgbImage {
    RgbImage::from_fn(24, 20, |x, y| {
        let noise = (x * 7 + y * 13 + i * 31) % 50;
        let mut pixel = [noise as u8; 3];
        pixel[2 - class] = (180 + noise) as u8;
        Rgb(pixel)
    })
}

/// Writes a network for 16-pixel pictures and a recipe for it; gives the recipe's path.
pub fn recipe(folder: &Path) -> String {
    let net = folder.join("tiny.toml");
    std::fs::write(
        &net,
        "name = 'tiny'\nsource = 'a test'\ninput = [3, 16, 16]\nlayer = [\n\
         { name = 'conv1', type = 'conv', filters = 8, kernel = 5, stride = 2, pad = 2 },\n\
         { name = 'relu1', type = 'relu' },\n\
         { name = 'pool1', type = 'pool', kind = 'max', size = 3, stride = 2 },\n\
         { name = 'fc7', type = 'linear', outputs = 16 },\n\
         { name = 'relu7', type = 'relu' },\n\
         { name = 'fc8', type = 'linear', outputs = 3 },\n]\n",
    )
    .unwrap();
    let recipe = folder.join("recipe.toml");
    std::fs::write(
        &recipe,
        format!(
            "name = 'test'\nsummary = 'a test'\nnet = {:?}\nepochs = 6\nbatch = 8\nlr = 0.05\nmomentum = 0.9\n\
             weight_decay = 0.0005\n[preprocess]\nside = 20\ndivisor = 255.0\nmean = 'channels'\n\
             [validation]\nfraction = 0.25\n",
            net.to_str().unwrap()
        ),
    )
    .unwrap();
    recipe.to_str().unwrap().to_string()
}

/// Every file below a folder with its bytes and time: what must not change.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, Option<std::time::SystemTime>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let about = std::fs::symlink_metadata(&path).unwrap();
            if about.is_dir() {
                folders.push(path);
            } else {
                let bytes = if about.is_file() { std::fs::read(&path).unwrap_or_default() } else { vec![] };
                files.insert(path, (bytes, about.modified().ok()));
            }
        }
    }
    files
}
