//! The command line as typed. What it means is decided in [`crate::plan`].

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Train, test and use AlexNet.
#[derive(Debug, Parser)]
#[command(name = "alexnet", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 finished with a negative answer (`data check` found faults, `eval --min-top1`
was missed); 2 usage or configuration; 3 data unusable (`predict`, `features`: some pictures could
not be read, and the others are done); 4 checkpoint unusable; 5 training diverged; 6 device fault;
75 stopped by a signal after a durable checkpoint (run again with --resume);
130 stopped by a signal with nothing saved, or by a second Ctrl-C.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network on pictures (a folder for each class, or another format), or on drawn ones when none are given
    Train(Train),
    /// Measure a trained network's error rates on pictures
    Eval(Eval),
    /// Name the likeliest classes of pictures
    Predict(Predict),
    /// Write a layer's activations for pictures as a safetensors file
    Features(Features),
    /// List the networks, or print one layer by layer
    Nets(Nets),
    /// List the recipes, print one, or say where two differ
    Recipe(Recipe),
    /// Check, pack or describe a set of pictures
    #[command(subcommand)]
    Data(Data),
    /// Say what a weight file is, import one of another program, or export a model
    #[command(subcommand)]
    Weights(Weights),
    /// Download known public weights, checked by size and SHA-256; none: list them
    Pull(Pull),
    /// Measure speed
    #[command(subcommand)]
    Bench(Bench),
    /// Say what this machine has and what the program would use
    Doctor(Doctor),
}

/// `alexnet train`.
#[derive(Debug, Args)]
pub struct Train {
    /// Folder with one folder of pictures a class, or with train/ and val/ folders of such, or pictures in another
    /// format (--format names them), or a pack; none: pictures are drawn
    pub data: Option<PathBuf>,
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// A network of `alexnet nets`, or a TOML file [default: torchvision; alexnet-mini for drawn pictures]
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// A built-in recipe, or a TOML file [default: finetune; mini for drawn pictures]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// Start from ImageNet's convolutions (net torchvision only), or from the layers of a checkpoint that fit
    #[arg(long, value_name = "imagenet|CHECKPOINT")]
    pub from: Option<String>,
    /// Where the run is kept [default: a new folder in runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in DIR, or the newest in runs/, from its newest valid checkpoint
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub resume: Option<Option<PathBuf>>,
    /// Passes over the training pictures; what a recipe does at an epoch moves with them [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u32>,
    /// Pictures a step [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Learning rate at the start [default: the recipe's]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Decides the split, the first weights, the order, crops and dropout [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Train on N pictures of every class and validate on the rest (the Caltech protocol)
    #[arg(long, value_name = "N", conflicts_with = "split")]
    pub train_per_class: Option<usize>,
    /// Keep this fraction of every class for validation, chosen by the hash of each path: 0.5 halves a set, as for the
    /// 10,184 classes of 2009 [default: val/ if there is one, else the recipe's]
    #[arg(long, value_name = "FRACTION")]
    pub split: Option<f64>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// How to compute, for every command that computes.
#[derive(Debug, Args)]
pub struct Compute {
    /// auto, f32 or bf16 [default: auto]
    #[arg(long, value_name = "P")]
    pub precision: Option<String>,
    /// auto or cpu
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: String,
    /// Threads [default: one for every core that this process may use]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `alexnet eval`.
#[derive(Debug, Args)]
#[command(
    override_usage = "alexnet eval [OPTIONS] MODEL... DATA\n       alexnet eval [OPTIONS] PREDICTIONS..."
)]
pub struct Eval {
    /// Models (checkpoints or run folders) and, last, the folder of pictures: of a model's own data the part that it was
    /// not trained on, of others val/ or all. Of several models the probabilities are averaged. A file of
    /// --save-predictions stands for the model that made it; if there are only such files, no folder is needed
    #[arg(required = true, num_args = 1.., value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// 1: the centre; 10: corners and centre and their mirror images, probabilities averaged
    #[arg(long, value_name = "1|10", default_value = "1")]
    pub views: usize,
    /// How much each of several models counts; `fit` finds the weights on one half of the pictures and reports on the
    /// other
    #[arg(long, value_name = "equal|fit|W,W,...", default_value = "equal", allow_hyphen_values = true)]
    pub weights: String,
    /// Measure with this fraction of every class, chosen by the hash of each path, whatever the models were trained on
    #[arg(long, value_name = "FRACTION")]
    pub split: Option<f64>,
    /// Print a table of the classes, worst first
    #[arg(long)]
    pub per_class: bool,
    /// Print the K most confused pairs of classes with examples [default: 5 pairs without examples]
    #[arg(long, value_name = "K")]
    pub confusions: Option<usize>,
    /// Print the K pictures that are most confidently wrong
    #[arg(long, value_name = "K", default_value = "0", hide_default_value = true)]
    pub worst: usize,
    /// Write the probabilities to a safetensors file
    #[arg(long, value_name = "FILE")]
    pub save_predictions: Option<PathBuf>,
    /// Write five class numbers a line, counted from 1, as ILSVRC's organizers take them
    #[arg(long, value_name = "FILE")]
    pub submission: Option<PathBuf>,
    /// Exit with code 1 if the fraction of pictures that is right at the first guess is smaller than X
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub min_top1: Option<f64>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// `alexnet predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How many classes to name for each picture
    #[arg(long, value_name = "N", default_value = "5")]
    pub top: usize,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// 1: the centre; 10: corners and centre and their mirror images, probabilities averaged
    #[arg(long, value_name = "1|10", default_value = "1")]
    pub views: usize,
    /// Write five class numbers a line, counted from 1, as ILSVRC's organizers take them
    #[arg(long, value_name = "FILE")]
    pub submission: Option<PathBuf>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// What `predict` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One line a picture and rank
    Csv,
    /// One JSON object a picture
    Jsonl,
}

/// `alexnet features`.
#[derive(Debug, Args)]
pub struct Features {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The layer; a convolution's or linear layer's name means after the ReLU that directly follows it [default: fc7, or
    /// the last layer before the classes]
    #[arg(long, value_name = "NAME")]
    pub layer: Option<String>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "features.safetensors")]
    pub out: PathBuf,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
}

/// `alexnet nets`.
#[derive(Debug, Args)]
pub struct Nets {
    /// The network, or a TOML file with one
    #[arg(value_name = "NAME")]
    pub net: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet recipe`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Recipe {
    /// The recipe, or a TOML file with one
    #[arg(value_name = "NAME|FILE")]
    pub name: Option<String>,
    /// Print JSON, every key written out
    #[arg(long)]
    pub json: bool,
    /// What else.
    #[command(subcommand)]
    pub command: Option<RecipeCommand>,
}

/// `alexnet recipe diff`.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Print every key on which two recipes differ, and every value of their networks
    Diff(RecipeDiff),
}

/// `alexnet recipe diff A B`.
#[derive(Debug, Args)]
pub struct RecipeDiff {
    /// A recipe, or a TOML file with one
    #[arg(value_name = "A")]
    pub a: String,
    /// Another
    #[arg(value_name = "B")]
    pub b: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Decode every picture; list those that cannot be used (exit code 1 if there are any)
    Check(DataCheck),
    /// Decode and resize every picture once, into one file that training reads; a killed run goes on where it stopped
    Pack(DataPack),
    /// Put the parts that `data pack --shard` made together into one pack
    Join(DataJoin),
    /// Count classes and pictures
    Stats(DataStats),
}

/// `alexnet data check`.
#[derive(Debug, Args)]
pub struct DataCheck {
    /// The folder, or a file that holds or lists pictures
    pub path: PathBuf,
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet data pack`.
#[derive(Debug, Args)]
pub struct DataPack {
    /// The folder, or a file that holds or lists pictures
    pub path: PathBuf,
    /// The file to write [default: where training looks for it, in the cache folder]
    pub out: Option<PathBuf>,
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Pack as this recipe asks; the flags below change that
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// How much of each picture is kept [default: square]
    #[arg(long, value_enum)]
    pub keep: Option<Keep>,
    /// In which form squares and whole pictures are stored [default: raw]
    #[arg(long, value_enum)]
    pub form: Option<Form>,
    /// Side of the square, or shorter side of whole pictures, in pixels [default: 256]
    #[arg(long, value_name = "N")]
    pub side: Option<usize>,
    /// How pictures are resized [default: bilinear]
    #[arg(long, value_enum)]
    pub resize: Option<Resize>,
    /// Make only part I of N, on one of N machines, for `data join`; the file must be named
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Allow a pack of more than 100 GB
    #[arg(long)]
    pub large: bool,
    /// Threads that decode [default: one for every core that this process may use]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `--keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// The central square: crops of one size
    Square,
    /// The whole picture, its shorter side resized: crops of random size
    Whole,
    /// The files as they are, decoded while training: crops of random size, as torchvision takes them
    Original,
}

/// `--form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// RGB bytes: the fastest
    Raw,
    /// JPEG of quality 95 with halved chroma: about a seventh of the bytes, decoded while training
    Jpeg,
}

/// `--resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resize {
    /// Antialiased, as Pillow and torchvision
    Bilinear,
    /// The mean of the area that each pixel covers
    Area,
    /// Antialiased bicubic, as Pillow and torchvision
    Cubic,
    /// The tool of 2014: OpenCV's area when shrinking, its cubic when enlarging
    AreaCubic,
    /// Caffe's: OpenCV's linear, between the nearest pixels, not antialiased
    Linear,
}

/// `alexnet data join`.
#[derive(Debug, Args)]
pub struct DataJoin {
    /// The file to write
    pub out: PathBuf,
    /// All the parts, in any order
    #[arg(required = true, value_name = "PART")]
    pub parts: Vec<PathBuf>,
}

/// `alexnet data stats`.
#[derive(Debug, Args)]
pub struct DataStats {
    /// The folder, a file that holds or lists pictures, or a pack
    pub path: PathBuf,
    /// How the pictures are kept: folder, ilsvrc, webdataset, parquet, list, cifar or tiny-imagenet [default:
    /// recognised]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet weights`.
#[derive(Debug, Subcommand)]
pub enum Weights {
    /// Say what a file is: format, network, tensors, preprocessing. Nothing in it is executed
    Info(WeightsInfo),
    /// Make a model of PyTorch (.pth), safetensors, Caffe (.caffemodel) or ONNX weights, for predict, eval, features, --from
    Import(WeightsImport),
    /// Write a model as safetensors (PyTorch), ONNX or Caffe
    Export(WeightsExport),
}

/// `alexnet weights info`.
#[derive(Debug, Args)]
pub struct WeightsInfo {
    /// A weight file of any known format, or a checkpoint or run folder
    pub file: PathBuf,
    /// The network to compare with: of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `alexnet weights import`.
#[derive(Debug, Args)]
pub struct WeightsImport {
    /// The weight file
    pub file: PathBuf,
    /// The model to write
    pub out: PathBuf,
    /// The network, where the file fits several: of `alexnet nets`, or a TOML file [default: recognized]
    #[arg(long, value_name = "NAME|FILE")]
    pub net: Option<String>,
    /// Class names, one a line, in the order of the outputs [default: the file's, or ImageNet's for 1000]
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,
    /// How pictures are prepared: torchvision or caffe [default: the file's, or the network's own]
    #[arg(long, value_name = "NAME")]
    pub preprocess: Option<String>,
    /// What is subtracted: three numbers R,G,B in pixels of 0-255, or Caffe's mean picture
    #[arg(long, value_name = "R,G,B|FILE.binaryproto", allow_hyphen_values = true)]
    pub mean: Option<String>,
    /// Order of the first convolution's channels: rgb or bgr [default: the format's]
    #[arg(long, value_name = "ORDER")]
    pub channels: Option<String>,
}

/// `alexnet weights export`.
#[derive(Debug, Args)]
pub struct WeightsExport {
    /// A checkpoint or a run folder
    pub model: PathBuf,
    /// The file to write
    pub out: PathBuf,
    /// The format [default: by the file's ending]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// ONNX: end before the softmax
    #[arg(long)]
    pub logits: bool,
}

/// What `weights export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// torchvision's names for its network, which load_state_dict takes; conv1.weight … fc8.bias for others
    Safetensors,
    /// Operators of opset 13, input `pixels`, output `probabilities` or `logits`
    Onnx,
    /// FILE.caffemodel and FILE.prototxt, blue channel first
    Caffe,
}

/// `alexnet pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// What to download; none: list what is known
    pub name: Option<String>,
    /// The file to write [default: in the cache folder]
    pub out: Option<PathBuf>,
    /// A table of other files: JSON, a list of name, url, bytes, sha256
    #[arg(long, value_name = "FILE", hide = true)]
    pub table: Option<PathBuf>,
}

/// `alexnet bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Steps of training, on made-up pictures or a pack
    Train(BenchRun),
    /// Forward passes, on made-up pictures or a pack
    Infer(BenchRun),
    /// Every pass of every stage beside what the machine can do at best
    Kernels(BenchKernels),
}

/// `alexnet bench train` and `alexnet bench infer`.
#[derive(Debug, Args)]
pub struct BenchRun {
    /// A network of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-2012")]
    pub net: String,
    /// Pictures a step
    #[arg(long, value_name = "N", default_value = "128")]
    pub batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "10")]
    pub steps: usize,
    /// Also from this pack (`alexnet data pack`), through the loader
    #[arg(long, value_name = "PACK")]
    pub data: Option<PathBuf>,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// `alexnet bench kernels`.
#[derive(Debug, Args)]
pub struct BenchKernels {
    /// A network of `alexnet nets`, or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-2012")]
    pub net: String,
    /// Pictures a step
    #[arg(long, value_name = "N", default_value = "128")]
    pub batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value = "20")]
    pub steps: usize,
    /// Forward passes at test time instead of steps of training
    #[arg(long)]
    pub infer: bool,
    /// How to compute.
    #[command(flatten)]
    pub compute: Compute,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// `alexnet doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_takes_a_folder_or_none() {
        let train = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Command::Train(train) => train,
            other => panic!("{other:?}"),
        };
        assert_eq!(train(&["alexnet", "train"]).resume, None);
        assert_eq!(train(&["alexnet", "train", "--resume"]).resume, Some(None));
        assert_eq!(train(&["alexnet", "train", "--resume", "runs/1"]).resume, Some(Some("runs/1".into())));
    }
}
