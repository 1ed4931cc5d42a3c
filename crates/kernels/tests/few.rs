//! The kernels for a few pictures against their definitions in f64 on the rounded operands, on every engine (AMX emulated
//! where the machine lacks it), at sizes around their tiles. Bounds as in `bf16_conv.rs`.

mod common;
mod engines;

use alexnet_kernels::bf16::conv::Fold;
use alexnet_kernels::bf16::few::convert::{self, Entry, flat_len};
use alexnet_kernels::bf16::few::{Border, PictureLayout, conv, lrn, pooling, spatial_lrn};
use alexnet_kernels::bf16::{Engine, pairs, pairs_mut, round, widen};
use alexnet_kernels::linear::few::{
    self as linear, Input, Output, Quantized, Rounded, quantize, quantized_len,
};
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;
use alexnet_kernels::{Context, Isa};
use common::Random;
use common::maps::{assert_rounded, rounded};
use engines::engines;

fn rows(c: usize, splits: usize, [height, width]: [usize; 2], border: [usize; 2]) -> PictureLayout {
    let border = Border { before: border[0], after: border[1] };
    PictureLayout { channels: c, splits, height, width, rows: border, columns: border }
}

fn values(integers: bool, len: usize, random: &mut Random) -> Vec<f32> {
    rounded(if integers { random.integers(len) } else { random.reals(len) })
}

/// Canonical values (N, C, H, W) as the layout stores them; the border is zero.
fn store(map: &PictureLayout, values: &[f32]) -> Vec<f32> {
    let picture = map.channels * map.height * map.width;
    let mut data = vec![0.0; values.len() / picture * map.picture_len()];
    for (i, &value) in values.iter().enumerate() {
        let (n, e) = (i / picture, i % picture);
        let (at, high) = map.offset(e / (map.height * map.width), e / map.width % map.height, e % map.width);
        pairs_mut(&mut data)[n * map.picture_len() + at] |=
            u32::from(round(value)) << if high { 16 } else { 0 };
    }
    data
}

/// The map's values, and a check that nothing besides was written.
fn load(map: &PictureLayout, count: usize, data: &[f32]) -> Vec<f32> {
    let mut values = vec![0.0; count * map.channels * map.height * map.width];
    convert::to_canonical(map, count, data, &mut values);
    assert!(pairs(&store(map, &values)) == pairs(data), "the border or an empty half was written");
    values
}

/// The map that a convolution reads, and noise where it reads what does not exist.
fn with_overhang(g: &conv::Geometry, mut x: Vec<f32>) -> Vec<f32> {
    x.extend(vec![f32::NAN; g.overhang()]);
    x
}

fn check_conv(engine: Engine, threads: usize, g: &conv::Geometry, count: usize, integers: bool, seed: u64) {
    let what = format!("{} {g:?} {count}", engine.name());
    let mut random = Random(seed);
    let mut ctx = Context::new(engine.isa(), threads);
    let (cg, kg, [r, s]) = (g.input.channels / g.groups, g.output.channels / g.groups, g.kernel);
    let x = values(integers, count * g.input.channels * g.input.height * g.input.width, &mut random);
    let w = values(integers, g.output.channels * cg * r * s, &mut random);
    let bias = values(integers, g.output.channels, &mut random);
    let mut want = vec![];
    for n in 0..count {
        for k in 0..g.output.channels {
            for p in 0..g.output.height {
                for q in 0..g.output.width {
                    let mut sum = f64::from(bias[k]);
                    for c in 0..cg {
                        for (i, j) in (0..r).flat_map(|i| (0..s).map(move |j| (i, j))) {
                            let (Some(h), Some(v)) = (
                                (p * g.stride + i).checked_sub(g.pad[0]),
                                (q * g.stride + j).checked_sub(g.pad[1]),
                            ) else {
                                continue;
                            };
                            if h < g.input.height && v < g.input.width {
                                let channel = n * g.input.channels + k / kg * cg + c;
                                let x = x[(channel * g.input.height + h) * g.input.width + v];
                                sum += f64::from(x) * f64::from(w[((k * cg + c) * r + i) * s + j]);
                            }
                        }
                    }
                    want.push(sum);
                }
            }
        }
    }
    let mut packed = conv::Packed::new(g);
    packed.set(&mut ctx, Fold { kernel: r, fold: 1 }, &w);
    let input = with_overhang(g, store(&g.input, &x));
    for relu in [false, true] {
        let mut y = vec![0.0; count * g.output.picture_len()];
        conv::forward(&mut ctx, engine, count, &input, &packed, &bias, relu, &mut y);
        let want: Vec<f64> = want.iter().map(|&v| if relu { v.max(0.0) } else { v }).collect();
        assert_rounded(&what, &load(&g.output, count, &y), &want, cg * r * s, integers);
    }
}

#[test]
fn convolution() {
    let strided = |input, output, groups, kernel, stride, pad| conv::Geometry {
        input,
        output,
        groups,
        kernel: [kernel; 2],
        stride,
        pad: [pad; 2],
    };
    let geometry = |input, output, groups, kernel, pad| strided(input, output, groups, kernel, 1, pad);
    for engine in engines() {
        for integers in [true, false] {
            // conv2's groups, whose rows of pairs do not fill whole steps; rows of three tiles.
            let (x, y) = (rows(96, 2, [5, 31], [2, 2]), rows(72, 2, [5, 31], [1, 1]));
            check_conv(engine, 2, &geometry(x, y, 2, 5, 2), 1, integers, 1);
            // Splits that no group asks for, an odd number of tiles, two pictures.
            let (x, y) = (rows(64, 2, [13, 13], [1, 1]), rows(40, 1, [13, 13], [0, 0]));
            check_conv(engine, 3, &geometry(x, y, 1, 3, 1), 2, integers, 2);
            // Odd channels, a wider border than the padding, a last panel of one channel.
            let (x, y) = (rows(3, 1, [7, 17], [3, 2]), rows(33, 1, [6, 16], [2, 0]));
            check_conv(engine, 1, &geometry(x, y, 1, 4, 1), 3, integers, 3);
            // Strides: ZFNet's second convolution, and one whose windows leave the last columns out.
            let (x, y) = (rows(34, 1, [13, 13], [0, 0]), rows(48, 2, [5, 5], [1, 1]));
            check_conv(engine, 2, &strided(x, y, 1, 5, 2, 0), 2, integers, 5);
            let (x, y) = (rows(6, 2, [12, 12], [1, 1]), rows(70, 2, [4, 4], [0, 0]));
            check_conv(engine, 2, &strided(x, y, 2, 3, 3, 1), 1, integers, 6);
            // One position.
            let (x, y) = (rows(5, 1, [1, 1], [0, 0]), rows(2, 1, [1, 1], [0, 0]));
            check_conv(engine, 1, &geometry(x, y, 1, 1, 0), 1, integers, 4);
        }
    }
}

/// Each number of rows of a product has code of its own, for one vector of output channels and for two.
#[test]
fn convolutions_of_every_width() {
    for engine in engines() {
        for width in 1..=15 {
            let (x, y) = (rows(5, 1, [3, width], [1, 1]), rows(40, 1, [3, width], [0, 1]));
            let g = conv::Geometry { input: x, output: y, groups: 1, kernel: [3; 2], stride: 1, pad: [1; 2] };
            check_conv(engine, 2, &g, 2, true, width as u64);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, y) = (rows(20, 1, [9, 21], [1, 1]), rows(50, 1, [9, 21], [0, 0]));
    let g = conv::Geometry { input: x, output: y, groups: 1, kernel: [3; 2], stride: 1, pad: [1; 2] };
    for engine in engines() {
        let runs = [1, 2, 3, 8].map(|threads| {
            let mut random = Random(5);
            let mut ctx = Context::new(engine.isa(), threads);
            let x = with_overhang(&g, store(&g.input, &values(false, 2 * 20 * 9 * 21, &mut random)));
            let mut packed = conv::Packed::new(&g);
            packed.set(&mut ctx, Fold { kernel: 3, fold: 1 }, &values(false, 50 * 20 * 9, &mut random));
            let mut y = vec![0.0; 2 * g.output.picture_len()];
            conv::forward(&mut ctx, engine, 2, &x, &packed, &[0.5; 50], false, &mut y);
            pairs(&y).to_vec()
        });
        assert!(runs.iter().all(|run| *run == runs[0]), "{}", engine.name());
    }
}

/// A strided convolution of pixels: folded, it moves by one position.
#[test]
fn folded_pixels() {
    for engine in engines() {
        for (side, kernel, stride, pad, filters) in
            [(35usize, 11usize, 4usize, 0, 34), (30, 11, 4, 2, 7), (23, 7, 2, 1, 16)]
        {
            let mut random = Random(side as u64);
            let mut ctx = Context::new(engine.isa(), 2);
            let out = (side + 2 * pad - kernel) / stride + 1;
            let read = out - 1 + kernel.div_ceil(stride);
            let map = rows(3 * stride * stride, 1, [read, read], [0, 0]);
            let entry = Entry { channels: 3, height: side, width: side, fold: stride, pad, map };
            let pixels = values(true, 2 * side * side * 3, &mut random);
            let w = values(true, filters * 3 * kernel * kernel, &mut random);
            let mut x = vec![0.0; 2 * map.picture_len() + 16 * map.split_pairs()];
            convert::enter(&mut ctx, &entry, 2, &pixels, &mut x);
            let output = rows(filters, 1, [out, out], [0, 0]);
            let steps = kernel.div_ceil(stride);
            let g =
                conv::Geometry { input: map, output, groups: 1, kernel: [steps; 2], stride: 1, pad: [0; 2] };
            let mut packed = conv::Packed::new(&g);
            packed.set(&mut ctx, Fold { kernel, fold: stride }, &w);
            let mut y = vec![0.0; 2 * output.picture_len()];
            conv::forward(&mut ctx, engine, 2, &x, &packed, &vec![0.0; filters], false, &mut y);
            let got = load(&output, 2, &y);
            for (i, got) in got.into_iter().enumerate() {
                let (n, k, p, q) =
                    (i / (filters * out * out), i / (out * out) % filters, i / out % out, i % out);
                let mut sum = 0.0;
                for (c, r, s) in
                    (0..3).flat_map(|c| (0..kernel).flat_map(move |r| (0..kernel).map(move |s| (c, r, s))))
                {
                    let at = |o: usize, t: usize| (o * stride + t).checked_sub(pad).filter(|&v| v < side);
                    if let (Some(h), Some(v)) = (at(p, r), at(q, s)) {
                        sum += pixels[((n * side + h) * side + v) * 3 + c]
                            * w[((k * 3 + c) * kernel + r) * kernel + s];
                    }
                }
                assert_eq!(got, widen(round(sum)), "{} {side} {kernel}/{stride}: {i}", engine.name());
            }
        }
    }
}

#[test]
fn max_and_average_pooling() {
    for (engine, average) in engines().into_iter().flat_map(|engine| [(engine, false), (engine, true)]) {
        // Windows that overlap, that overhang, that are one pixel; splits that change on the way.
        for (c, splits, side, size, stride) in [
            (70, [1, 1], 13usize, 3usize, 2usize),
            (8, [1, 2], 12, 3, 2),
            (3, [1, 1], 18, 2, 2),
            (4, [2, 1], 5, 1, 1),
        ] {
            let out = if side > size { (side - size).div_ceil(stride) + 1 } else { 1 };
            let input = rows(c, splits[0], [side, side], [1, 0]);
            let output = rows(c, splits[1], [out, out], [2, 1]);
            let mut random = Random(side as u64);
            let x = values(false, 2 * c * side * side, &mut random);
            let mut y = vec![0.0; 2 * output.picture_len()];
            let g = pooling::Geometry { input, output, size, stride, average };
            let mut ctx = Context::new(engine.isa(), 2);
            pooling::forward(&mut ctx, &g, 2, &store(&input, &x), &mut y);
            let want: Vec<f64> = (0..2 * c * out * out)
                .map(|i| {
                    let (plane, p, q) = (i / (out * out), i / out % out, i % out);
                    let rows = p * stride..side.min(p * stride + size);
                    let columns = || q * stride..side.min(q * stride + size);
                    let window = rows.flat_map(|h| columns().map(move |w| (h, w)));
                    let window: Vec<f64> =
                        window.map(|(h, w)| f64::from(x[(plane * side + h) * side + w])).collect();
                    if average {
                        window.iter().sum::<f64>() / window.len() as f64
                    } else {
                        window.into_iter().fold(f64::MIN, f64::max)
                    }
                })
                .collect();
            assert_rounded("pooling", &load(&output, 2, &y), &want, size * size, !average);
        }
    }
}

#[test]
fn normalization() {
    for engine in engines() {
        for (channels, splits, size, towers) in [(12, 1, 5, 1), (16, 2, 5, 2), (7, 1, 3, 1)] {
            let map = rows(channels, splits, [3, 19], [1, 2]);
            let op = Lrn { size, k: 2.0, alpha: 0.1, beta: 0.75, channels, towers };
            let mut random = Random(channels as u64);
            let x = values(false, 2 * channels * 3 * 19, &mut random);
            let mut y = vec![0.0; 2 * map.picture_len()];
            let mut ctx = Context::new(engine.isa(), 2);
            lrn::forward(&mut ctx, &op, &map, 2, &store(&map, &x), &mut y);
            let plane = 3 * 19;
            let want: Vec<f64> = (0..x.len())
                .map(|i| {
                    let (n, c, at) = (i / (channels * plane), i / plane % channels, i % plane);
                    let width = channels / towers;
                    let tower = c / width * width;
                    let window =
                        tower.max(c.saturating_sub(size / 2))..(c + size - size / 2).min(tower + width);
                    let squares = window.map(|j| f64::from(x[(n * channels + j) * plane + at]).powi(2));
                    f64::from(x[i]) * (2.0 + f64::from(op.alpha) * squares.sum::<f64>()).powf(-0.75)
                })
                .collect();
            assert_rounded("lrn", &load(&map, 2, &y), &want, size, false);
        }
    }
}

/// Flat rows of pairs of `inputs` values each.
fn flat_rows(x: &[f32], inputs: usize) -> Vec<f32> {
    let mut flat = vec![0.0; x.len() / inputs * flat_len(inputs)];
    for (i, &value) in x.iter().enumerate() {
        let at = i / inputs * flat_len(inputs) + i % inputs / 2;
        pairs_mut(&mut flat)[at] |= u32::from(round(value)) << (i % inputs % 2 * 16);
    }
    flat
}

#[test]
fn normalization_within_maps() {
    for engine in engines() {
        for (channels, splits, size) in [(12, 1, 5), (70, 2, 3), (7, 1, 4)] {
            let (height, width) = (6usize, 9usize);
            let map = rows(channels, splits, [height, width], [1, 2]);
            let op = SpatialLrn { size, k: 2.0, alpha: 0.1, beta: 0.75, height, width, depth: channels };
            let mut random = Random(channels as u64);
            let x = values(false, 2 * channels * height * width, &mut random);
            let mut y = vec![0.0; 2 * map.picture_len()];
            let mut ctx = Context::new(engine.isa(), 2);
            spatial_lrn::forward(&mut ctx, &op, &map, 2, &store(&map, &x), &mut y);
            let want: Vec<f64> = (0..x.len())
                .map(|i| {
                    let (plane, h, w) = (i / (height * width), i / width % height, i % width);
                    let window =
                        |at: usize, end: usize| at.saturating_sub(size / 2)..(at + size - size / 2).min(end);
                    let positions =
                        window(h, height).flat_map(|h| window(w, width).map(move |w| h * width + w));
                    let squares = positions.map(|at| f64::from(x[plane * height * width + at]).powi(2));
                    f64::from(x[i]) * (2.0 + f64::from(op.alpha) * squares.sum::<f64>()).powf(-0.75)
                })
                .collect();
            assert_rounded("spatial lrn", &load(&map, 2, &y), &want, size * size, false);
        }
    }
}

#[test]
fn linear_layers() {
    for engine in engines() {
        for (count, inputs, outputs) in [(1, 70, 33), (2, 64, 7), (3, 31, 64), (5, 129, 34), (8, 1, 1)] {
            for integers in [true, false] {
                let mut random = Random(inputs as u64);
                let mut ctx = Context::new(engine.isa(), 2);
                let x = values(integers, count * inputs, &mut random);
                let w = values(integers, outputs * inputs, &mut random);
                let bias = values(integers, outputs, &mut random);
                let flat = flat_rows(&x, inputs);
                let mut weights = Rounded::new(outputs, inputs);
                weights.set(&mut ctx, &w);
                for relu in [false, true] {
                    let want: Vec<f64> = (0..count * outputs)
                        .map(|i| {
                            let (x, w) = (&x[i / outputs * inputs..], &w[i % outputs * inputs..]);
                            let terms =
                                x.iter().zip(w).take(inputs).map(|(&x, &w)| f64::from(x) * f64::from(w));
                            let sum = f64::from(bias[i % outputs]) + terms.sum::<f64>();
                            if relu { sum.max(0.0) } else { sum }
                        })
                        .collect();
                    let mut y = vec![0.0; count * flat_len(outputs)];
                    linear::forward(&mut ctx, count, &flat, &weights, &bias, relu, Output::Flat(&mut y));
                    let mut got = vec![0.0; count * outputs];
                    convert::flat_to_rows(outputs, count, &y, &mut got);
                    assert_rounded("linear", &got, &want, inputs, integers);
                    linear::forward(&mut ctx, count, &flat, &weights, &bias, relu, Output::Rows(&mut got));
                    for (got, want) in got.iter().zip(&want) {
                        let bound = 1e-5 * (inputs as f64).sqrt();
                        assert!((f64::from(*got) - want).abs() <= bound, "{got} {want}");
                    }
                }
            }
        }
    }
}

/// (N, O) of a layer with quantized weights. `x` is exact in bf16: whether it comes so or in f32 makes no difference.
fn quantized(isa: Isa, threads: usize, count: usize, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
    let (inputs, outputs) = (x.len() / count, bias.len());
    let mut ctx = Context::new(isa, threads);
    let mut weights = Quantized::new(outputs, inputs);
    weights.set(&mut ctx, w);
    let flat = flat_rows(x, inputs);
    let [from_flat, from_rows] = [Input::Flat(&flat), Input::Rows(x)].map(|x| {
        let mut values = vec![0.0; count * quantized_len(inputs)];
        quantize(&mut ctx, count, inputs, x, &mut values);
        let mut y = vec![0.0; count * outputs];
        linear::forward(&mut ctx, count, &values, &weights, bias, false, Output::Rows(&mut y));
        y
    });
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&from_flat), bits(&from_rows), "{count} rows of {inputs}");
    from_flat
}

/// Half a step of each weight and of each input is what rounding may cost, and every instruction set gives the same bits.
#[test]
fn quantized_linear_layers() {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    for (count, inputs, outputs) in
        [(1, 70, 33), (2, 64, 7), (3, 31, 64), (5, 129, 34), (8, 1, 1), (4, 9216, 5)]
    {
        let mut random = Random(inputs as u64);
        let x = values(false, count * inputs, &mut random);
        // Outputs whose weights differ in size, and one with none.
        let mut w = random.reals(outputs * inputs);
        for (o, w) in w.chunks_exact_mut(inputs).enumerate() {
            w.iter_mut().for_each(|w| *w *= (o % 5) as f32);
        }
        let bias = random.reals(outputs);
        let results: Vec<Vec<f32>> = Isa::all()
            .into_iter()
            .flat_map(|isa| [1, 3].map(|threads| quantized(isa, threads, count, &x, &w, &bias)))
            .collect();
        assert!(results.iter().all(|y| *y == results[0]), "{inputs} × {outputs}");
        for (i, got) in results[0].iter().enumerate() {
            let (x, w) = (&x[i / outputs * inputs..][..inputs], &w[i % outputs * inputs..][..inputs]);
            let mut want = f64::from(bias[i % outputs]);
            let (mut of_weights, mut of_inputs) = (0.0, 0.0);
            for (x, w) in x.iter().zip(w) {
                want += f64::from(*x) * f64::from(*w);
                of_weights += f64::from(x.abs());
                of_inputs += f64::from(w.abs());
            }
            of_weights *= f64::from(largest(w)) / 127.0 / 2.0;
            // Inputs have as many steps as sums of a quarter of the products leave room for in 32 bits.
            let products = inputs.next_multiple_of(64) / 4;
            let steps = (i32::MAX as usize / (127 * products)).min(32_767);
            of_inputs *= f64::from(largest(x)) / steps as f64 / 2.0;
            let bound = 1.01 * (of_weights + of_inputs) + 1e-6;
            assert!(
                (f64::from(*got) - want).abs() <= bound,
                "{inputs} × {outputs}: {got}, not {want} ± {bound}"
            );
        }
    }
}

#[test]
fn quantized_layers_hide_no_value_that_is_not_finite() {
    for isa in Isa::all() {
        let (x, w) = (vec![1.0f32; 2 * 70], vec![0.5f32; 3 * 70]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut one = x.clone();
            one[70 + 69] = bad;
            let y = quantized(isa, 1, 2, &one, &w, &[0.0; 3]);
            assert!(y[..3].iter().all(|y| *y == 35.0) && y[3..].iter().all(|y| y.is_nan()), "{bad}: {y:?}");
            let mut one = w.clone();
            one[70] = bad;
            let y = quantized(isa, 1, 2, &x, &one, &[0.0; 3]);
            assert!(y[1].is_nan() && y[4].is_nan() && y[0] == 35.0 && y[5] == 35.0, "{bad}: {y:?}");
        }
    }
}

#[test]
fn maps_become_flat_rows_in_canonical_order() {
    for isa in Isa::all() {
        let map = rows(6, 2, [3, 5], [1, 1]);
        let mut random = Random(6);
        let x = values(true, 2 * 6 * 15, &mut random);
        let mut flat = vec![0.0; 2 * flat_len(90)];
        convert::flatten(&mut Context::new(isa, 2), &map, 2, &store(&map, &x), &mut flat);
        let mut got = vec![0.0; 180];
        convert::flat_to_rows(90, 2, &flat, &mut got);
        assert_eq!(got, x);
    }
}
