//! Normalization and pooling kernels against their definitions in f64, on every instruction set.

mod common;

use alexnet_kernels::conv::Axis;
use alexnet_kernels::lrn::{self, Lrn};
use alexnet_kernels::lrn_pool::{self, LrnPool, Won};
use alexnet_kernels::pooling::{self, Geometry, Share};
use alexnet_kernels::spatial_lrn::{self, SpatialLrn};
use alexnet_kernels::{Context, Isa};
use common::{Random, assert_close};

#[test]
fn lrn_forward_and_backward() {
    let shapes =
        [(48, 1, 5), (96, 2, 5), (7, 1, 3), (64, 4, 5), (34, 2, 4), (1, 1, 5), (17, 1, 16), (256, 2, 5)];
    for (channels, towers, size) in shapes {
        for beta in [0.75f32, 0.5] {
            // Strong coupling, so that a wrong window shows.
            let lrn = Lrn { size, k: 2.0, alpha: 0.3, beta, channels, towers };
            let positions = 37;
            let mut random = Random(channels as u64);
            let (x, g) = (random.reals(positions * channels), random.reals(positions * channels));
            let (width, before) = (channels / towers, size / 2);
            let window = |i: usize| {
                let (tower, c) = (i / width, i % width);
                let from = c.saturating_sub(before);
                let to = (c + size - before).min(width);
                tower * width + from..tower * width + to
            };
            let d =
                |i: usize| 2.0 + f64::from(0.3f32) * window(i).map(|j| f64::from(x[j]).powi(2)).sum::<f64>();
            let beta = f64::from(beta);
            let y: Vec<f64> = (0..x.len()).map(|i| f64::from(x[i]) * d(i).powf(-beta)).collect();
            let mut dx: Vec<f64> = (0..x.len()).map(|i| f64::from(g[i]) * d(i).powf(-beta)).collect();
            for i in 0..x.len() {
                let term = f64::from(g[i]) * f64::from(x[i]) * d(i).powf(-beta - 1.0);
                for j in window(i) {
                    dx[j] -= 2.0 * f64::from(0.3f32) * beta * f64::from(x[j]) * term;
                }
            }
            for isa in Isa::all() {
                let mut ctx = Context::new(isa, 2);
                let what = format!("{isa:?} {lrn:?}");
                let mut out = vec![f32::NAN; x.len()];
                lrn::forward(&mut ctx, &lrn, &x, &mut out);
                assert_close(&what, &out, &y, 1e-6);
                let mut out = vec![f32::NAN; x.len()];
                lrn::backward(&mut ctx, &lrn, &x, &g, false, &mut out);
                assert_close(&what, &out, &dx, 2e-6);
                lrn::backward(&mut ctx, &lrn, &x, &g, true, &mut out);
                let masked: Vec<f64> =
                    dx.iter().zip(&x).map(|(d, x)| if *x > 0.0 { *d } else { 0.0 }).collect();
                assert_close(&what, &out, &masked, 2e-6);
            }
        }
    }
}

fn axis(input: usize, kernel: usize, stride: usize, output: usize) -> Axis {
    Axis { input, output, kernel, stride, pad: 0 }
}

#[test]
fn pooling_forward_and_backward() {
    let shapes = [
        (axis(13, 3, 2, 6), axis(7, 3, 2, 3), 96),
        // Clipped last windows.
        (axis(6, 3, 2, 3), axis(5, 2, 2, 3), 65),
        // Windows that do not touch, one window, the whole map.
        (axis(7, 2, 3, 3), axis(4, 1, 2, 2), 5),
        (axis(1, 3, 2, 1), axis(4, 4, 4, 1), 130),
    ];
    for (i, (rows, columns, depth)) in shapes.into_iter().enumerate() {
        let g = Geometry { rows, columns, depth };
        let mut random = Random(i as u64);
        // Integers tie often.
        let (x, dy) = (random.integers(g.input_len(2)), random.integers(g.output_len(2)));
        let mut max = vec![f64::NEG_INFINITY; dy.len()];
        let mut mean = vec![0.0; dy.len()];
        let mut first = vec![0; dy.len()];
        // (output, input) in row order of each window.
        let mut pairs = vec![];
        for o in 0..dy.len() {
            let (lane, q, p) =
                (o % depth, o / depth % columns.output, o / depth / columns.output % rows.output);
            let block = o / depth / columns.output / rows.output;
            for h in p * rows.stride..(p * rows.stride + rows.kernel).min(rows.input) {
                for w in q * columns.stride..(q * columns.stride + columns.kernel).min(columns.input) {
                    pairs.push((o, ((block * rows.input + h) * columns.input + w) * depth + lane));
                }
            }
        }
        let mut area = vec![0.0; dy.len()];
        for &(o, i) in &pairs {
            if f64::from(x[i]) > max[o] {
                (max[o], first[o]) = (f64::from(x[i]), i);
            }
            mean[o] += f64::from(x[i]);
            area[o] += 1.0;
        }
        mean.iter_mut().zip(&area).for_each(|(m, a)| *m /= a);
        let (mut to_first, mut to_all, mut to_mean) =
            (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        for &(o, i) in &pairs {
            let g = f64::from(dy[o]);
            to_first[i] += if first[o] == i { g } else { 0.0 };
            to_all[i] += if f64::from(x[i]) == max[o] { g } else { 0.0 };
            to_mean[i] += g / area[o];
        }
        for isa in Isa::all() {
            let mut ctx = Context::new(isa, 2);
            let what = format!("{isa:?} {g:?}");
            let (mut y, mut winner) = (vec![f32::NAN; dy.len()], vec![255; dy.len()]);
            pooling::max_forward(&mut ctx, &g, &x, &mut y, None);
            assert_close(&what, &y, &max, 0.0);
            y.fill(f32::NAN);
            pooling::max_forward(&mut ctx, &g, &x, &mut y, Some(&mut winner));
            assert_close(&what, &y, &max, 0.0);
            let mut average = vec![f32::NAN; dy.len()];
            pooling::average_forward(&mut ctx, &g, &x, &mut average);
            assert_close(&what, &average, &mean, 1e-6);
            let mut dx = vec![f32::NAN; x.len()];
            pooling::backward(&mut ctx, &g, Share::Winner(&winner), &dy, None, &mut dx);
            assert_close(&what, &dx, &to_first, 0.0);
            pooling::backward(&mut ctx, &g, Share::EveryMaximum { x: &x, y: &y }, &dy, Some(&x), &mut dx);
            let masked: Vec<f64> =
                to_all.iter().zip(&x).map(|(d, x)| if *x > 0.0 { *d } else { 0.0 }).collect();
            assert_close(&what, &dx, &masked, 0.0);
            pooling::backward(&mut ctx, &g, Share::Mean, &dy, None, &mut dx);
            assert_close(&what, &dx, &to_mean, 1e-5);
        }
    }
}

#[test]
fn a_window_with_a_nan_yields_it() {
    let g = Geometry { rows: axis(3, 3, 2, 1), columns: axis(5, 3, 2, 2), depth: 35 };
    for isa in Isa::all() {
        let mut ctx = Context::new(isa, 1);
        // At every place of the first window and every lane; the second shares the third column.
        for (place, lane) in (0..9).flat_map(|place| (0..35).map(move |lane| (place, lane))) {
            let mut x = vec![1.0; g.input_len(1)];
            x[(place / 3 * 5 + place % 3) * 35 + lane] = f32::NAN;
            let (mut y, mut winner) = (vec![0.0f32; 70], vec![255; 70]);
            pooling::max_forward(&mut ctx, &g, &x, &mut y, Some(&mut winner));
            for (i, y) in y.iter().enumerate() {
                let is_there = i % 35 == lane && (i < 35 || place % 3 == 2);
                assert_eq!(y.is_nan(), is_there, "{isa:?}: place {place}, lane {lane}, output {i}");
            }
            assert_eq!(usize::from(winner[lane]), place, "{isa:?}");
        }
    }
}

/// What one pass yields is what two yield, bit for bit, whatever the number of threads.
#[test]
fn normalization_and_pooling_in_one_pass() {
    let shapes = [
        // (block, channels, towers, size): more and fewer pictures than go together, and partial vectors.
        (32, 16, 1, 5, axis(13, 3, 2, 6), axis(9, 3, 2, 4)),
        (9, 10, 2, 5, axis(7, 3, 2, 3), axis(7, 3, 2, 3)),
        (3, 7, 1, 4, axis(6, 3, 2, 3), axis(5, 2, 2, 3)),
        // Windows that do not touch, and one that is the whole map.
        (5, 6, 1, 3, axis(7, 2, 3, 3), axis(4, 1, 2, 2)),
        (1, 33, 1, 5, axis(1, 3, 2, 1), axis(4, 4, 4, 1)),
    ];
    for (block, channels, towers, size, rows, columns) in shapes {
        for beta in [0.75, 0.5] {
            let lrn = Lrn { size, k: 2.0, alpha: 0.3, beta, channels, towers };
            let pool = Geometry { rows, columns, depth: block * channels };
            let op = LrnPool { lrn, pool };
            let mut random = Random(channels as u64);
            // Integers tie often, also after they are normalized.
            let (x, dy) = (random.integers(pool.input_len(3)), random.integers(pool.output_len(3)));
            for isa in Isa::all() {
                let what = format!("{isa:?} {op:?}");
                let mut ctx = Context::new(isa, 1);
                let (mut middle, mut y) = (vec![0.0; x.len()], vec![0.0; dy.len()]);
                let mut winners = vec![255; dy.len()];
                lrn::forward(&mut ctx, &lrn, &x, &mut middle);
                pooling::max_forward(&mut ctx, &pool, &middle, &mut y, Some(&mut winners));
                for threads in [1, 2, 3] {
                    let mut ctx = Context::new(isa, threads);
                    let (mut got, mut won) = (vec![f32::NAN; dy.len()], vec![77; dy.len()]);
                    lrn_pool::forward(&mut ctx, &op, &x, &mut got, None);
                    assert_eq!(got, y, "{what}, no winners");
                    got.fill(f32::NAN);
                    lrn_pool::forward(&mut ctx, &op, &x, &mut got, Some(&mut won));
                    assert_eq!((got, won), (y.clone(), winners.clone()), "{what}");
                    let shares = [
                        (Share::Winner(&winners), Won::Winner(&winners)),
                        (Share::EveryMaximum { x: &middle, y: &y }, Won::EveryMaximum(&y)),
                    ];
                    for ((share, won), relu) in shares.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                        let (mut between, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                        pooling::backward(&mut ctx, &pool, share, &dy, None, &mut between);
                        lrn::backward(&mut ctx, &lrn, &x, &between, relu, &mut dx);
                        let mut got = vec![f32::NAN; x.len()];
                        lrn_pool::backward(&mut ctx, &op, &x, won, &dy, relu, &mut got);
                        assert_eq!(got, dx, "{what}, {won:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn spatial_lrn_forward_and_backward() {
    for (height, width, depth, size) in [(6, 5, 19, 5), (4, 7, 32, 2), (1, 3, 1, 3), (2, 2, 48, 7)] {
        for beta in [0.75f32, 0.4] {
            let lrn = SpatialLrn { size, k: 1.0, alpha: 0.2, beta, height, width, depth };
            let mut random = Random(depth as u64);
            let len = 2 * height * width * depth;
            let (x, g) = (random.reals(len), random.reals(len));
            let window = |i: usize| {
                let (lane, w, h) = (i % depth, i / depth % width, i / depth / width % height);
                let block = i / depth / width / height;
                let range =
                    |at: usize, extent| at.saturating_sub(size / 2)..(at + size - size / 2).min(extent);
                let mut all = vec![];
                for h in range(h, height) {
                    for w in range(w, width) {
                        all.push(((block * height + h) * width + w) * depth + lane);
                    }
                }
                all
            };
            let beta = f64::from(beta);
            let d: Vec<f64> = (0..len)
                .map(|i| {
                    1.0 + f64::from(0.2f32) * window(i).iter().map(|&j| f64::from(x[j]).powi(2)).sum::<f64>()
                })
                .collect();
            let y: Vec<f64> = (0..len).map(|i| f64::from(x[i]) * d[i].powf(-beta)).collect();
            let mut dx: Vec<f64> = (0..len).map(|i| f64::from(g[i]) * d[i].powf(-beta)).collect();
            for i in 0..len {
                let term = f64::from(g[i]) * f64::from(x[i]) * d[i].powf(-beta - 1.0);
                for j in window(i) {
                    dx[j] -= 2.0 * f64::from(0.2f32) * beta * f64::from(x[j]) * term;
                }
            }
            let masked: Vec<f64> = dx.iter().zip(&x).map(|(d, x)| if *x > 0.0 { *d } else { 0.0 }).collect();
            for isa in Isa::all() {
                let mut ctx = Context::new(isa, 2);
                let what = format!("{isa:?} {lrn:?}");
                let (mut out, mut terms) = (vec![f32::NAN; len], vec![f32::NAN; len]);
                spatial_lrn::forward(&mut ctx, &lrn, &x, &mut out);
                assert_close(&what, &out, &y, 1e-6);
                for relu in [false, true] {
                    spatial_lrn::backward(&mut ctx, &lrn, &x, &g, relu, &mut terms, &mut out);
                    assert_close(&what, &out, if relu { &masked } else { &dx }, 5e-6);
                }
            }
        }
    }
}
