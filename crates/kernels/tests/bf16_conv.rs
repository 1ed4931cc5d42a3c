//! Convolutions in bf16 against their definitions in f64 on the rounded operands, on every engine (AMX emulated where the
//! machine lacks it), at sizes around their tiles.
//!
//! What is stored in bf16 is within half a unit of its last place, 2^−8 of the value, of the exact sum rounded; sums are in
//! f32, within 1e-5·√K of the largest terms. On small integers everything is exact.

mod common;
mod engines;

use alexnet_kernels::Context;
use alexnet_kernels::bf16::conv::{self, Epilogue, Fold, Geometry, Method, Packed, Source, WeightPlan};
use alexnet_kernels::bf16::convert;
use alexnet_kernels::bf16::entry::{Entry, Pixels, enter};
use alexnet_kernels::bf16::pooling::{self, Record, Winners};
use alexnet_kernels::bf16::{Engine, MapLayout, PICTURES, pairs, round};
use alexnet_kernels::conv::Axis;
use common::Random;
use common::maps::{Map, assert_rounded, load, room, rounded};
use engines::engines;

fn axis(input: usize, kernel: usize, stride: usize, pad: usize, after: usize) -> Axis {
    Axis { input, output: (input + pad + after - kernel) / stride + 1, kernel, stride, pad }
}

fn geometry(c: [usize; 2], k: [usize; 2], groups: usize, rows: Axis, columns: Axis) -> Geometry {
    Geometry {
        input: MapLayout { channels: c[0], splits: c[1], height: rows.input, width: columns.input },
        output: MapLayout { channels: k[0], splits: k[1], height: rows.output, width: columns.output },
        groups,
        rows,
        columns,
    }
}

/// What Winograd's method may be off by, over the root of the number of terms, which are products of values up to 1. The
/// rounding of both transformed operands makes for a usual error of 0.004 of the usual result, and that is a third of the
/// root; the largest of many thousand is about five times the usual one.
const ROUNDED_TWICE: f64 = 5.0 * 0.004 / 3.0;

/// [`assert_rounded`] for sums of operands that were rounded after a transformation.
fn assert_rounded_twice(what: &str, got: &[f32], want: &[f64], terms: usize, integers: bool) {
    if integers {
        return assert_rounded(what, got, want, terms, true);
    }
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let bound = w.abs() / 256.0 + ROUNDED_TWICE * (terms as f64).sqrt();
        assert!((f64::from(g) - w).abs() <= bound, "{what}: element {i} is {g}, not {w} (± {bound:e})");
    }
}

fn check_conv(engine: Engine, threads: usize, g: &Geometry, count: usize, integers: bool, seed: u64) {
    let what = format!("{} {g:?} {count}", engine.name());
    let mut random = Random(seed);
    let mut ctx = Context::new(engine.isa(), threads);
    let x = Map::random(g.input, count, integers, &mut random);
    let dy = Map::random(g.output, count, integers, &mut random);
    let (cg, kg, r, s) =
        (g.input.channels / g.groups, g.output.channels / g.groups, g.rows.kernel, g.columns.kernel);
    let len = g.output.channels * cg * r * s;
    let w = rounded(if integers { random.integers(len) } else { random.reals(len) });
    let bias = if integers { random.integers(g.output.channels) } else { random.reals(g.output.channels) };

    let (mut y, mut dx) = (vec![0.0f64; dy.values.len()], vec![0.0f64; x.values.len()]);
    let (mut dw, mut db) = (vec![0.0f64; len], vec![0.0f64; bias.len()]);
    for n in 0..count {
        for k in 0..g.output.channels {
            for p in 0..g.rows.output {
                for q in 0..g.columns.output {
                    let out = n * dy.picture() + (k * g.rows.output + p) * g.columns.output + q;
                    y[out] += f64::from(bias[k]);
                    db[k] += dy.values[out];
                    for c in 0..cg {
                        for i in 0..r {
                            for j in 0..s {
                                let h = (p * g.rows.stride + i).wrapping_sub(g.rows.pad);
                                let v = (q * g.columns.stride + j).wrapping_sub(g.columns.pad);
                                if h >= g.rows.input || v >= g.columns.input {
                                    continue;
                                }
                                let channel = k / kg * cg + c;
                                let weight = ((k * cg + c) * r + i) * s + j;
                                let from =
                                    n * x.picture() + (channel * g.rows.input + h) * g.columns.input + v;
                                y[out] += f64::from(w[weight]) * x.values[from];
                                dx[from] += f64::from(w[weight]) * dy.values[out];
                                dw[weight] += x.values[from] * dy.values[out];
                            }
                        }
                    }
                }
            }
        }
    }

    let fold = Fold { kernel: r, fold: 1 };
    let all = count.next_multiple_of(PICTURES);
    for method in [Method::Direct, Method::Winograd] {
        if method == Method::Winograd && !g.fits_winograd() {
            continue;
        }
        let what = format!("{what} {method:?}");
        let close = |what: &str, got: &[f32], want: &[f64], terms: usize| match method {
            Method::Direct => assert_rounded(what, got, want, terms, integers),
            Method::Winograd => assert_rounded_twice(what, got, want, terms, integers),
        };
        if r == s {
            let mut packed = Packed::for_forward(g, method);
            conv::pack_forward(&mut ctx, g, fold, &w, &mut packed);
            for relu in [false, true] {
                let mut got = vec![0.0; room(&g.output, count)];
                let epilogue = if relu { Epilogue::BiasRelu } else { Epilogue::Bias };
                conv::forward(
                    &mut ctx,
                    engine,
                    g,
                    all,
                    Source::Map(&x.data),
                    &packed,
                    &bias,
                    epilogue,
                    &mut got,
                );
                let want: Vec<f64> = y.iter().map(|v| if relu { v.max(0.0) } else { *v }).collect();
                close(&format!("y {what}"), &load(&g.output, count, &got), &want, cg * r * s);
                // A batch of up to 16 pictures may leave the other lanes alone.
                let mut narrow = vec![0.0; room(&g.output, count)];
                conv::forward(
                    &mut ctx,
                    engine,
                    g,
                    count,
                    Source::Map(&x.data),
                    &packed,
                    &bias,
                    epilogue,
                    &mut narrow,
                );
                assert_eq!(load(&g.output, count, &narrow), load(&g.output, count, &got), "narrow {what}");
            }
        }

        let mut packed = Packed::for_backward(g, method);
        conv::pack_backward(&mut ctx, g, &w, &mut packed);
        for masked in [false, true] {
            let mut got = vec![0.0; room(&g.input, count)];
            let relu = masked.then_some(&x.data[..]);
            conv::backward_input(&mut ctx, engine, g, all, &dy.data, &packed, relu, &mut got);
            let want: Vec<f64> =
                dx.iter().zip(&x.values).map(|(d, x)| if masked && *x <= 0.0 { 0.0 } else { *d }).collect();
            close(&format!("dx {what}"), &load(&g.input, count, &got), &want, kg * r * s);
        }

        if method == Method::Winograd && !g.weight_fits_winograd() {
            continue;
        }
        let blocks = count.div_ceil(PICTURES);
        let mut plan = WeightPlan::new(g, blocks, method);
        let mut paired = vec![0.0; plan.paired_len(g, blocks)];
        let (mut got_dw, mut got_db) = (vec![f32::NAN; len], vec![f32::NAN; bias.len()]);
        conv::backward_weight(
            &mut ctx,
            engine,
            g,
            fold,
            &mut plan,
            count,
            &x.data,
            &mut paired,
            &dy.data,
            &mut got_dw,
            &mut got_db,
        );
        let terms = (count * g.rows.output * g.columns.output) as f64;
        let exact = if integers { 0.0 } else { 1e-5 * terms.sqrt() };
        let of_rounding =
            if method == Method::Winograd && !integers { ROUNDED_TWICE * terms.sqrt() } else { 0.0 };
        common::assert_close(&format!("dw {what}"), &got_dw, &dw, exact + of_rounding);
        common::assert_close(&format!("db {what}"), &got_db, &db, exact);
    }
}

#[test]
fn convolutions_of_every_kind() {
    // AlexNet's kinds: conv2's groups of 48 channels, 3×3 over all and within groups, strides, overhangs; odd numbers of
    // channels, one channel, splits finer than the groups; conv1's folded pixels, whose weights pass L1 by.
    let cases = [
        (geometry([48, 1], [64, 1], 1, axis(4, 3, 1, 0, 0), axis(5, 3, 1, 0, 0)), 32),
        (geometry([96, 2], [64, 2], 2, axis(5, 5, 1, 2, 2), axis(7, 5, 1, 2, 2)), 33),
        (geometry([64, 1], [96, 2], 1, axis(4, 3, 1, 1, 1), axis(3, 3, 1, 1, 1)), 32),
        (geometry([64, 2], [64, 2], 1, axis(3, 3, 1, 1, 1), axis(4, 3, 1, 1, 1)), 5),
        (geometry([32, 2], [34, 2], 2, axis(3, 3, 1, 1, 1), axis(3, 3, 1, 1, 1)), 16),
        (geometry([3, 1], [5, 1], 1, axis(7, 3, 2, 0, 1), axis(8, 3, 2, 1, 1)), 17),
        (geometry([7, 1], [33, 1], 1, axis(6, 4, 3, 2, 1), axis(9, 4, 3, 2, 3)), 31),
        (geometry([1, 1], [1, 1], 1, axis(2, 2, 1, 0, 0), axis(2, 2, 1, 0, 0)), 1),
        (geometry([48, 1], [17, 1], 1, axis(3, 1, 1, 0, 0), axis(3, 1, 1, 0, 0)), 65),
        (geometry([12, 4], [20, 4], 2, axis(4, 3, 1, 1, 1), axis(5, 3, 1, 1, 1)), 12),
        (geometry([15, 3], [9, 3], 3, axis(4, 3, 1, 1, 1), axis(5, 3, 1, 1, 1)), 12),
        // Windows deeper than the parts in which tiles take them, and rows of more columns than share a part.
        (geometry([128, 1], [40, 1], 1, axis(4, 3, 1, 1, 1), axis(17, 3, 1, 1, 1)), 17),
        (geometry([192, 2], [16, 1], 1, axis(2, 5, 1, 2, 2), axis(3, 5, 1, 2, 2)), 3),
        (geometry([48, 1], [32, 1], 1, axis(3, 5, 1, 2, 2), axis(16, 5, 1, 2, 2)), 2),
        // Rows of windows that tiles take three and two taps at a time, of one tile of filters and of two; more zeros behind
        // the map than before it.
        (geometry([20, 1], [48, 1], 1, axis(3, 4, 1, 1, 2), axis(7, 4, 1, 1, 2)), 33),
        (geometry([40, 1], [16, 1], 1, axis(4, 5, 1, 0, 1), axis(9, 5, 1, 0, 4)), 3),
        (geometry([16, 1], [33, 1], 1, axis(3, 7, 1, 3, 3), axis(12, 7, 1, 2, 4)), 32),
        (geometry([34, 2], [64, 2], 2, axis(3, 2, 1, 0, 1), axis(5, 2, 1, 0, 1)), 40),
        (geometry([17, 1], [32, 1], 1, axis(3, 3, 1, 0, 2), axis(3, 3, 1, 0, 2)), 64),
        // Winograd's tiles: odd and even sizes, one output, groups, splits finer than the groups on either side, batches up
        // to 16 pictures, more blocks than one.
        (geometry([64, 1], [32, 1], 1, axis(5, 3, 1, 1, 1), axis(4, 3, 1, 1, 1)), 32),
        (geometry([64, 2], [128, 4], 2, axis(4, 3, 1, 1, 1), axis(7, 3, 1, 1, 1)), 5),
        (geometry([128, 4], [64, 2], 2, axis(3, 3, 1, 1, 1), axis(6, 3, 1, 1, 1)), 70),
        (geometry([32, 1], [96, 1], 1, axis(1, 3, 1, 1, 1), axis(2, 3, 1, 1, 1)), 16),
        (geometry([32, 1], [32, 1], 1, axis(13, 3, 1, 1, 1), axis(13, 3, 1, 1, 1)), 131),
        // And of 5×5 windows; panels and depths of one tile and a half.
        (geometry([48, 1], [96, 2], 1, axis(5, 5, 1, 2, 2), axis(4, 5, 1, 2, 2)), 32),
        (geometry([96, 2], [160, 2], 2, axis(2, 5, 1, 2, 2), axis(7, 5, 1, 2, 2)), 17),
        (geometry([64, 4], [96, 2], 2, axis(3, 5, 1, 2, 2), axis(1, 5, 1, 2, 2)), 5),
        // More tiles than a unit takes, in both directions.
        (geometry([48, 1], [32, 1], 1, axis(9, 5, 1, 2, 2), axis(19, 5, 1, 2, 2)), 3),
        (geometry([32, 1], [48, 1], 1, axis(19, 3, 1, 1, 1), axis(9, 3, 1, 1, 1)), 3),
    ];
    for engine in engines() {
        for (i, (g, count)) in cases.iter().enumerate() {
            for integers in [true, false] {
                check_conv(engine, 1 + i % 2, g, *count, integers, i as u64);
            }
        }
    }
}

#[test]
fn random_convolutions() {
    let mut random = Random(99);
    let mut draw = |from: usize, to: usize| from + random.below(to - from + 1);
    let engines = engines();
    for i in 0..40 {
        let groups = draw(1, 2);
        let (kernel, stride) = (draw(1, 5), draw(1, 3));
        let axes = [0, 1].map(|_| {
            let (pad, after) = (draw(0, kernel - 1), draw(0, kernel - 1));
            axis(draw(kernel, 8), kernel, stride, pad, after)
        });
        let (c, k) = (groups * draw(1, 40), groups * draw(1, 40));
        let g = geometry([c, groups], [k, groups], groups, axes[0], axes[1]);
        check_conv(engines[i % engines.len()], 2, &g, draw(1, 40), i % 3 > 0, i as u64);
    }
}

/// What is pooled as it is computed equals what is computed, stored and pooled, and so do the places that won.
#[test]
fn convolutions_that_are_pooled_as_they_are_computed() {
    // Windows that overlap, meet, leave rows out and are clipped at the end; splits of the pooled map that are those of the
    // groups, finer, or none; more columns than share a part of a deep window; chunks of several panels, and several chunks;
    // an odd number of channels; batches up to 16 pictures; more units than a block has rows.
    let cases = [
        (geometry([48, 1], [64, 1], 1, axis(9, 3, 1, 0, 0), axis(10, 3, 1, 0, 0)), 1, (3, 2), 128),
        (geometry([96, 2], [80, 2], 2, axis(13, 5, 1, 2, 2), axis(17, 5, 1, 2, 2)), 1, (3, 2), 33),
        (geometry([64, 1], [160, 1], 1, axis(8, 5, 1, 2, 2), axis(5, 5, 1, 2, 2)), 2, (3, 3), 16),
        (geometry([192, 1], [96, 2], 1, axis(7, 3, 1, 1, 1), axis(6, 3, 1, 1, 1)), 4, (2, 3), 40),
        (geometry([5, 1], [7, 1], 1, axis(6, 3, 2, 1, 1), axis(9, 3, 1, 1, 1)), 1, (4, 1), 5),
        (geometry([8, 2], [72, 2], 2, axis(1, 3, 1, 1, 1), axis(3, 3, 1, 1, 1)), 2, (1, 1), 70),
    ];
    for engine in engines() {
        for (i, &(g, splits, (size, stride), count)) in cases.iter().enumerate() {
            let pooled = |axis: Axis| {
                let output =
                    axis.output.saturating_sub(size).div_ceil(stride).min((axis.output - 1) / stride) + 1;
                Axis { input: axis.output, output, kernel: size, stride, pad: 0 }
            };
            let [rows, columns] = [g.rows, g.columns].map(pooled);
            let output =
                MapLayout { channels: g.output.channels, splits, height: rows.output, width: columns.output };
            let pool = pooling::Geometry { input: g.output, output, rows, columns };
            let mut random = Random(i as u64);
            let mut ctx = Context::new(engine.isa(), 1 + i % 3);
            let x = Map::random(g.input, count, true, &mut random);
            let w = random
                .integers(g.output.channels * g.input.channels / g.groups * g.rows.kernel * g.columns.kernel);
            let bias = random.integers(g.output.channels);
            let mut packed = Packed::for_forward(&g, Method::Direct);
            conv::pack_forward(&mut ctx, &g, Fold { kernel: g.rows.kernel, fold: 1 }, &w, &mut packed);
            let blocks = count.div_ceil(PICTURES);
            for (relu, winners) in [(true, Some(Winners::First)), (false, Some(Winners::All)), (true, None)] {
                let epilogue = if relu { Epilogue::BiasRelu } else { Epilogue::Bias };
                let mut all = vec![0.0; room(&g.output, count)];
                conv::forward(
                    &mut ctx,
                    engine,
                    &g,
                    count,
                    Source::Map(&x.data),
                    &packed,
                    &bias,
                    epilogue,
                    &mut all,
                );
                let [mut want, mut got] = [0; 2].map(|_| vec![0.0; room(&output, count)]);
                let [mut won, mut won_at_once] = [0; 2].map(|_| vec![0u16; 2 * blocks * output.block_len()]);
                let record = |places| winners.map(|winners| Record { places, winners });
                pooling::max_forward(&mut ctx, &pool, blocks, &all, &mut want, relu, record(&mut won));
                let record = record(&mut won_at_once);
                conv::forward_pooled(
                    &mut ctx,
                    engine,
                    &g,
                    &pool,
                    count,
                    Source::Map(&x.data),
                    &packed,
                    &bias,
                    epilogue,
                    &mut got,
                    record,
                );
                let what = format!("{} {pool:?} {count} {relu}", engine.name());
                assert_eq!(load(&output, count, &got), load(&output, count, &want), "{what}");
                for n in 0..count {
                    for c in 0..output.channels {
                        for (p, q) in (0..output.height).flat_map(|p| (0..output.width).map(move |q| (p, q)))
                        {
                            let (at, odd) = output.offset(n % PICTURES, c, p, q);
                            let at = 2 * (n / PICTURES * output.block_len() + at) + usize::from(odd);
                            assert_eq!(won_at_once[at], won[at], "{what}: {n} {c} {p} {q}");
                        }
                    }
                }
                assert!(winners.is_none() || won.iter().any(|places| *places != 0), "{what}");
            }
        }
    }
}

/// A strided first convolution on folded pixels equals itself on plain ones.
#[test]
fn folded_pixels_give_the_same_convolution() {
    for (channels, kernel, stride, pad, after, side) in [
        (3, 11, 4, 0, 3, 24),
        (3, 7, 2, 0, 1, 10),
        (3, 11, 4, 2, 2, 21),
        (1, 5, 3, 1, 2, 9),
        (3, 4, 4, 0, 0, 8),
    ] {
        let plain = axis(side, kernel, stride, pad, after);
        let size = plain.output - 1 + kernel.div_ceil(stride);
        let folded =
            Axis { input: size, output: plain.output, kernel: kernel.div_ceil(stride), stride: 1, pad: 0 };
        let (g, f) = (
            geometry([channels, 1], [6, 1], 1, plain, plain),
            geometry([channels * stride * stride, 1], [6, 1], 1, folded, folded),
        );
        let fold = Fold { kernel, fold: stride };
        let count = 34;
        let blocks = 2;
        let mut random = Random(5);
        let x = Map::random(g.input, count, true, &mut random);
        let mut pixels = vec![0.0; count * x.picture()];
        for n in 0..count {
            for c in 0..channels {
                for h in 0..side {
                    for w in 0..side {
                        pixels[((n * side + h) * side + w) * channels + c] = x.at(n, c, h, w) as f32;
                    }
                }
            }
        }
        let w = random.integers(6 * channels * kernel * kernel);
        let bias = random.integers(6);
        let dy = Map::random(g.output, count, true, &mut random);
        for engine in engines() {
            let mut ctx = Context::new(engine.isa(), 2);
            let run = |ctx: &mut Context, g: &Geometry, fold, x: &[f32]| {
                let mut packed = Packed::for_forward(g, Method::Direct);
                conv::pack_forward(ctx, g, fold, &w, &mut packed);
                let mut y = vec![0.0; room(&g.output, count)];
                conv::forward(ctx, engine, g, count, Source::Map(x), &packed, &bias, Epilogue::Bias, &mut y);
                let mut plan = WeightPlan::new(g, blocks, Method::Direct);
                let mut paired = vec![0.0; plan.paired_len(g, blocks)];
                let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; 6]);
                conv::backward_weight(
                    ctx,
                    engine,
                    g,
                    fold,
                    &mut plan,
                    count,
                    x,
                    &mut paired,
                    &dy.data,
                    &mut dw,
                    &mut db,
                );
                (load(&g.output, count, &y), dw, db)
            };
            let want = run(&mut ctx, &g, Fold { kernel, fold: 1 }, &x.data);
            let mut map = vec![0.0; room(&f.input, count)];
            let entry = Entry { channels, height: side, width: side, fold: stride, pad, map: f.input };
            enter(&mut ctx, engine, &entry, count, Pixels::F32(&pixels), &mut map);
            assert!(run(&mut ctx, &f, fold, &map) == want, "{} {kernel} {stride} {pad}", engine.name());
        }
    }
}

/// A map that is too large for caches is stored past them, whether its lines are aligned or not.
#[test]
fn a_large_batch_enters_pixel_by_pixel() {
    let (channels, side, fold, pad, count) = (3usize, 135usize, 4, 2, 150usize);
    let size = (side + 2 * pad).div_ceil(fold);
    let map = MapLayout { channels: channels * fold * fold, splits: 1, height: size, width: size };
    let entry = Entry { channels, height: side, width: side, fold, pad, map };
    let pixels = Random(7).reals(count * side * side * channels);
    for engine in engines() {
        let mut ctx = Context::new(engine.isa(), 2);
        for offset in [0, 1] {
            let mut to = vec![f32::NAN; room(&map, count) + offset];
            enter(&mut ctx, engine, &entry, count, Pixels::F32(&pixels), &mut to[offset..]);
            let got = pairs(&to[offset..]);
            let inside = |v: usize| v.checked_sub(pad).filter(|&v| v < side);
            for n in 0..count.next_multiple_of(PICTURES) {
                for c in 0..map.channels {
                    for (h, w) in (0..size).flat_map(|h| (0..size).map(move |w| (h, w))) {
                        let (at, odd) = map.offset(n % PICTURES, c, h, w);
                        let got = got[n / PICTURES * map.block_len() + at];
                        let got = if odd { got >> 16 } else { got & 0xffff };
                        let (y, x) = (h * fold + c / channels / fold, w * fold + c / channels % fold);
                        let want = match (inside(y), inside(x)) {
                            (Some(y), Some(x)) if n < count => {
                                pixels[((n * side + y) * side + x) * channels + c % channels]
                            }
                            _ => 0.0,
                        };
                        assert_eq!(
                            got,
                            u32::from(round(want)),
                            "{} {offset}: {n} {c} {h} {w}",
                            engine.name()
                        );
                    }
                }
            }
        }
    }
}

/// Pixels that were rounded before enter as those that are rounded on the way: rows of an odd number of values, columns that no
/// window reads, channels that fill no pairs, splits.
#[test]
fn rounded_pixels_enter_as_pixels() {
    for (channels, side, fold, pad, splits, size) in [
        (3usize, 21usize, 4usize, 2usize, 1, 7usize),
        (3, 20, 4, 3, 1, 7),
        (3, 40, 4, 0, 1, 9),
        (3, 9, 2, 0, 1, 4),
        (3, 7, 1, 0, 1, 7),
        (4, 6, 1, 1, 2, 8),
    ] {
        let map = MapLayout { channels: channels * fold * fold, splits, height: size, width: size };
        let entry = Entry { channels, height: side, width: side, fold, pad, map };
        let count = 66;
        let pixels = Random(3).reals(count * side * side * channels);
        for engine in engines() {
            let mut ctx = Context::new(engine.isa(), 2);
            let mut bits = vec![0; pixels.len()];
            convert::round_values(&mut ctx, &pixels, &mut bits);
            assert!(bits.iter().zip(&pixels).all(|(bits, pixel)| *bits == round(*pixel)));
            let mut enter = |pixels| {
                let mut to = vec![f32::NAN; room(&map, count)];
                enter(&mut ctx, engine, &entry, count, pixels, &mut to);
                pairs(&to)[..3 * map.block_len()].to_vec()
            };
            let (want, got) = (enter(Pixels::F32(&pixels)), enter(Pixels::Bf16(&bits)));
            assert!(got == want, "{} {entry:?}", engine.name());
        }
    }
}

/// A convolution that makes map 0 of pixels as it goes equals what it yields of that map, pooled or not.
#[test]
fn pixels_enter_as_windows_need_them() {
    // Folded pixels with padding; pixels as they are, of channels that fill no pairs, with windows that overhang; windows that
    // overlap by a row and that leave rows out; a map that one thread alone computes.
    for (channels, side, fold, pad, rows, count) in [
        (3usize, 41usize, 4usize, 2usize, axis(11, 3, 1, 0, 0), 70),
        (3, 9, 1, 0, axis(9, 3, 1, 1, 1), 40),
        (1, 12, 1, 0, axis(12, 3, 2, 1, 1), 33),
        (2, 14, 1, 0, axis(14, 2, 3, 0, 0), 16),
        (3, 21, 2, 1, axis(11, 4, 1, 0, 0), 1),
    ] {
        let map =
            MapLayout { channels: channels * fold * fold, splits: 1, height: rows.input, width: rows.input };
        let entry = Entry { channels, height: side, width: side, fold, pad, map };
        let g = geometry([map.channels, 1], [70, 1], 1, rows, rows);
        let mut random = Random(side as u64);
        let pixels = random.reals(count * side * side * channels);
        let w = random.reals(70 * map.channels * rows.kernel * rows.kernel);
        let bias = random.reals(70);
        let window = axis(rows.output, 2, 2, 0, rows.output % 2);
        let pooled = MapLayout { height: window.output, width: window.output, ..g.output };
        let pool = pooling::Geometry { input: g.output, output: pooled, rows: window, columns: window };
        for engine in engines() {
            let mut ctx = Context::new(engine.isa(), 2);
            let mut bits = vec![0; pixels.len()];
            convert::round_values(&mut ctx, &pixels, &mut bits);
            let mut x = vec![0.0; room(&map, count)];
            enter(&mut ctx, engine, &entry, count, Pixels::F32(&pixels), &mut x);
            let mut packed = Packed::for_forward(&g, Method::Direct);
            conv::pack_forward(&mut ctx, &g, Fold { kernel: rows.kernel, fold: 1 }, &w, &mut packed);
            let mut run = |source| {
                let mut y = vec![0.0; room(&g.output, count)];
                conv::forward(&mut ctx, engine, &g, count, source, &packed, &bias, Epilogue::Bias, &mut y);
                let mut z = vec![0.0; room(&pooled, count)];
                let epilogue = Epilogue::BiasRelu;
                conv::forward_pooled(
                    &mut ctx, engine, &g, &pool, count, source, &packed, &bias, epilogue, &mut z, None,
                );
                (load(&g.output, count, &y), load(&pooled, count, &z))
            };
            let want = run(Source::Map(&x));
            for pixels in [Pixels::F32(&pixels), Pixels::Bf16(&bits)] {
                assert!(run(Source::Pixels(&entry, pixels)) == want, "{} {entry:?} {rows:?}", engine.name());
            }
        }
    }
}
