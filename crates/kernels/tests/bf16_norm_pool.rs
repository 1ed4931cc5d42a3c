//! Normalization and pooling on bf16 maps against their definitions in f64. Bounds as in `bf16_conv.rs`.

mod common;

use alexnet_kernels::Context;
use alexnet_kernels::bf16::lrn_pool::{self, LrnPool};
use alexnet_kernels::bf16::pooling::{Record, Winners};
use alexnet_kernels::bf16::{Engine, MapLayout, PICTURES, lrn, pooling, spatial_lrn};
use alexnet_kernels::conv::Axis;
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;
use common::Random;
use common::maps::{Map, assert_rounded, load, room, store};

#[test]
fn normalization_within_maps() {
    for engine in Engine::all() {
        let mut ctx = Context::new(engine.isa(), 2);
        // Windows of odd and even size, wider than the map; groups of pairs that are not full; an empty half.
        for (channels, splits, size, [height, width]) in
            [(20, 2, 5, [7, 6]), (5, 1, 4, [3, 5]), (8, 1, 1, [2, 2]), (2, 1, 9, [4, 3])]
        {
            let map = MapLayout { channels, splits, height, width };
            let (k, alpha, beta) = (1.0f64, 0.04f64, 0.75f64);
            let op = SpatialLrn {
                size,
                k: k as f32,
                alpha: alpha as f32,
                beta: beta as f32,
                height,
                width,
                depth: 2 * map.split_pairs() * PICTURES,
            };
            let mut random = Random(size as u64);
            let count = 33;
            let (x, dy) =
                (Map::random(map, count, false, &mut random), Map::random(map, count, false, &mut random));
            let window =
                |at: usize, extent: usize| at.saturating_sub(size / 2)..(at + size - size / 2).min(extent);
            let (mut y, mut dx) = (vec![0.0; x.values.len()], vec![0.0; x.values.len()]);
            for (n, c) in (0..count).flat_map(|n| (0..channels).map(move |c| (n, c))) {
                let index = |h: usize, w: usize| n * x.picture() + (c * height + h) * width + w;
                for (h, w) in (0..height).flat_map(|h| (0..width).map(move |w| (h, w))) {
                    let places = || window(h, height).flat_map(|i| window(w, width).map(move |j| (i, j)));
                    let d = k + alpha * places().map(|(i, j)| x.at(n, c, i, j).powi(2)).sum::<f64>();
                    let at = index(h, w);
                    y[at] = x.values[at] * d.powf(-beta);
                    dx[at] += dy.values[at] * d.powf(-beta);
                    for (i, j) in places() {
                        let term = dy.values[at] * x.values[at] * d.powf(-beta - 1.0);
                        dx[index(i, j)] -= 2.0 * alpha * beta * x.values[index(i, j)] * term;
                    }
                }
            }
            let what = format!("{} {map:?} {size}", engine.name());
            let mut got = vec![0.0; room(&map, count)];
            spatial_lrn::forward(&mut ctx, engine, &op, &map, 2, &x.data, &mut got);
            assert_rounded(&what, &load(&map, count, &got), &y, size * size, false);
            for relu in [false, true] {
                spatial_lrn::backward(&mut ctx, engine, &op, &map, 2, &x.data, &dy.data, relu, &mut got);
                let want: Vec<f64> =
                    dx.iter().zip(&x.values).map(|(&d, &x)| if relu && x <= 0.0 { 0.0 } else { d }).collect();
                assert_rounded(&what, &load(&map, count, &got), &want, size * size, false);
            }
        }
    }
}

#[test]
fn normalization_across_maps() {
    for engine in Engine::all() {
        let mut ctx = Context::new(engine.isa(), 2);
        for (channels, splits, towers, size, beta) in [
            (96, 2, 2, 5, 0.75f64),
            (96, 2, 1, 5, 0.75),
            (16, 1, 2, 4, 0.5),
            (5, 1, 1, 9, 0.75),
            (10, 2, 1, 3, 0.75),
        ] {
            let map = MapLayout { channels, splits, height: 2, width: 3 };
            let (k, alpha) = (2.0f64, 0.3f64);
            let op = Lrn { size, k: k as f32, alpha: alpha as f32, beta: beta as f32, channels, towers };
            let mut random = Random(channels as u64);
            let count = 33;
            let (x, dy) =
                (Map::random(map, count, false, &mut random), Map::random(map, count, false, &mut random));
            let width = channels / towers;
            let window = |c: usize| {
                let (tower, i) = (c / width, c % width);
                tower * width + i.saturating_sub(size / 2)..tower * width + (i + size - size / 2).min(width)
            };
            let (mut y, mut dx) = (vec![0.0; x.values.len()], vec![0.0; x.values.len()]);
            for n in 0..count {
                for h in 0..2 {
                    for w in 0..3 {
                        let d: Vec<f64> = (0..channels)
                            .map(|c| k + alpha * window(c).map(|j| x.at(n, j, h, w).powi(2)).sum::<f64>())
                            .collect();
                        for c in 0..channels {
                            let at = n * x.picture() + (c * 2 + h) * 3 + w;
                            y[at] = x.values[at] * d[c].powf(-beta);
                            dx[at] += dy.values[at] * d[c].powf(-beta);
                            for j in window(c) {
                                let other = n * x.picture() + (j * 2 + h) * 3 + w;
                                dx[other] -= 2.0
                                    * alpha
                                    * beta
                                    * x.values[other]
                                    * dy.values[at]
                                    * x.values[at]
                                    * d[c].powf(-beta - 1.0);
                            }
                        }
                    }
                }
            }
            let blocks = 2;
            let mut got = vec![0.0; room(&map, count)];
            lrn::forward(&mut ctx, engine, &op, &map, blocks, &x.data, &mut got);
            assert_rounded(&format!("y {engine:?} {op:?}"), &load(&map, count, &got), &y, 4, false);
            for relu in [false, true] {
                let mut got = vec![0.0; room(&map, count)];
                lrn::backward(&mut ctx, engine, &op, &map, blocks, &x.data, &dy.data, relu, &mut got);
                let want: Vec<f64> =
                    dx.iter().zip(&x.values).map(|(d, x)| if relu && *x <= 0.0 { 0.0 } else { *d }).collect();
                assert_rounded(&format!("dx {engine:?} {op:?}"), &load(&map, count, &got), &want, 16, false);
            }
        }
    }
}

#[test]
fn max_pooling_between_splits() {
    for engine in Engine::all() {
        let mut ctx = Context::new(engine.isa(), 2);
        for (channels, splits, side, size, stride) in
            [(8, [2, 1], 7, 3, 2), (12, [2, 2], 6, 3, 2), (5, [1, 1], 5, 2, 2), (4, [1, 2], 4, 2, 1)]
        {
            let output = usize::div_ceil(side - size, stride) + 1;
            let one = Axis { input: side, output, kernel: size, stride, pad: 0 };
            let layout = |splits, side| MapLayout { channels, splits, height: side, width: side };
            let g = pooling::Geometry {
                input: layout(splits[0], side),
                output: layout(splits[1], output),
                rows: one,
                columns: one,
            };
            let count = 40;
            let mut random = Random(3);
            // Integers, so that there are ties.
            let x = Map::random(g.input, count, true, &mut random);
            let dy = Map::random(g.output, count, true, &mut random);
            let (mut y, mut dx) = (vec![0.0; dy.values.len()], [0, 1].map(|_| vec![0.0; x.values.len()]));
            for n in 0..count {
                for c in 0..channels {
                    for p in 0..output {
                        for q in 0..output {
                            let mut best = (f64::NEG_INFINITY, 0);
                            let mut window = vec![];
                            for h in p * stride..(p * stride + size).min(side) {
                                for w in q * stride..(q * stride + size).min(side) {
                                    let here =
                                        (x.at(n, c, h, w), n * x.picture() + (c * side + h) * side + w);
                                    best = if here.0 > best.0 { here } else { best };
                                    window.push(here);
                                }
                            }
                            let at = n * dy.picture() + (c * output + p) * output + q;
                            y[at] = best.0;
                            dx[0][best.1] += dy.values[at];
                            window.iter().filter(|x| x.0 == best.0).for_each(|x| dx[1][x.1] += dy.values[at]);
                        }
                    }
                }
            }
            for (winners, relu, dx) in [
                (Winners::First, false, &dx[0]),
                (Winners::First, true, &dx[0]),
                (Winners::All, false, &dx[1]),
                (Winners::All, true, &dx[1]),
            ] {
                let mut got = vec![0.0; room(&g.output, count)];
                let mut places = vec![0; 4 * g.output.block_len()];
                let record = Record { places: &mut places, winners };
                // After a ReLU nothing is negative; what was is masked, so the gradient is the same.
                let through = |v: &f64| if relu { v.max(0.0) } else { *v };
                let x_data = store(&g.input, count, &x.values.iter().map(through).collect::<Vec<_>>(), 0.0);
                let y: Vec<f64> = y.iter().map(through).collect();
                pooling::max_forward(&mut ctx, &g, 2, &x_data, &mut got, relu, Some(record));
                assert_rounded(&format!("y {engine:?} {g:?}"), &load(&g.output, count, &got), &y, 1, true);
                let mut alone = vec![0.0; room(&g.output, count)];
                pooling::max_forward(&mut ctx, &g, 2, &x_data, &mut alone, relu, None);
                assert_eq!(alone, got, "without winners");
                let mut got = vec![0.0; room(&g.input, count)];
                pooling::max_backward(&mut ctx, engine, &g, 2, &dy.data, &places, &mut got);
                let masked = |(d, x): (&f64, &f64)| if relu && *x <= 0.0 { 0.0 } else { *d };
                let want: Vec<f64> = dx.iter().zip(&x.values).map(masked).collect();
                let what = format!("dx {engine:?} {winners:?} {relu} {g:?}");
                assert_rounded(&what, &load(&g.input, count, &got), &want, 4, true);
            }
        }
    }
}

/// Every window of four out of eight special values: both zeros are equal, a NaN is larger than any number.
#[test]
fn max_pooling_of_special_values() {
    const VALUES: [f64; 8] = [f64::NEG_INFINITY, -2.0, -0.0, 0.0, 1e-30, f64::INFINITY, f64::NAN, -f64::NAN];
    let windows = VALUES.len().pow(4) / (2 * PICTURES);
    let axis = |input| Axis { input, output: input / 2, kernel: 2, stride: 2, pad: 0 };
    let layout = |height, width| MapLayout { channels: 2, splits: 1, height, width };
    let (rows, columns) = (axis(2), axis(2 * windows));
    let g = pooling::Geometry { input: layout(2, 2 * windows), output: layout(1, windows), rows, columns };
    // Window q of channel c of picture n has the digits of a number as its four values.
    let window = |n: usize, c: usize, q: usize| {
        let number = (n * 2 + c) * windows + q;
        [0, 1, 2, 3].map(|place| VALUES[number / VALUES.len().pow(place) % VALUES.len()])
    };
    // What a ReLU lets through: no number below zero, but a zero or a NaN may have a sign.
    let window = |relu: bool, n, c, q| window(n, c, q).map(|v| if relu && v < 0.0 { 0.0 } else { v });
    let x = [false, true].map(|relu| {
        let mut values = vec![];
        for n in 0..PICTURES {
            for c in 0..2 {
                for h in 0..2 {
                    values.extend((0..2 * windows).map(|w| window(relu, n, c, w / 2)[2 * h + w % 2]));
                }
            }
        }
        store(&g.input, PICTURES, &values, 0.0)
    });
    let larger = |a: f64, b: f64| a > b || (a.is_nan() && !b.is_nan());
    for engine in Engine::all() {
        for (winners, relu) in
            [(Winners::First, false), (Winners::All, false), (Winners::First, true), (Winners::All, true)]
        {
            let mut ctx = Context::new(engine.isa(), 2);
            let mut y = vec![0.0; room(&g.output, PICTURES)];
            let mut places = vec![0; 2 * g.output.block_len()];
            let record = Record { places: &mut places, winners };
            pooling::max_forward(&mut ctx, &g, 1, &x[usize::from(relu)], &mut y, relu, Some(record));
            let got = load(&g.output, PICTURES, &y);
            for n in 0..PICTURES {
                for c in 0..2 {
                    for q in 0..windows {
                        let window = window(relu, n, c, q);
                        let first = (0..4).find(|&i| window.iter().all(|&v| !larger(v, window[i]))).unwrap();
                        let as_large = |i: &usize| !larger(window[first], window[*i]);
                        let mut want = match winners {
                            Winners::First => 1 << first,
                            Winners::All => (0..4).filter(as_large).map(|i| 1 << i).sum::<u16>(),
                        };
                        if relu && !larger(window[first], 0.0) {
                            want = 0;
                        }
                        let (at, high) = g.output.offset(n, c, 0, q);
                        let what = format!("{engine:?} {winners:?} {relu} {window:?}");
                        assert_eq!(places[2 * at + usize::from(high)], want, "{what}");
                        let y = f64::from(got[(n * 2 + c) * windows + q]);
                        let near = (y - window[first]).abs() <= window[first].abs() / 256.0;
                        assert!(
                            near || y == window[first] || (y.is_nan() && window[first].is_nan()),
                            "{what}: {y}"
                        );
                    }
                }
            }
        }
    }
}

/// Normalization and pooling in one pass do what the two do one after the other: the same values and winners to the bit,
/// and a gradient that lacks only the rounding between them.
#[test]
fn normalization_and_pooling_in_one_pass() {
    for engine in Engine::all() {
        let shapes = [
            (2, (96, [1, 2], 1), (11, 9), (3, 2)),
            (1, (20, [1, 1], 2), (8, 7), (3, 2)),
            (3, (8, [2, 1], 1), (6, 11), (2, 2)),
            (2, (12, [2, 2], 2), (5, 5), (4, 1)),
            (2, (4, [1, 1], 1), (7, 7), (2, 3)),
            (8, (6, [1, 1], 1), (4, 3), (3, 3)),
        ];
        for ((threads, (channels, splits, towers), (height, width), (size, stride)), winners) in
            shapes.into_iter().flat_map(|shape| [(shape, Winners::First), (shape, Winners::All)])
        {
            let what =
                format!("{engine:?} {winners:?} {channels} {splits:?} {height}x{width} {size}/{stride}");
            let mut ctx = Context::new(engine.isa(), threads);
            let axis = |input: usize| Axis {
                input,
                output: usize::div_ceil(input - size, stride) + 1,
                kernel: size,
                stride,
                pad: 0,
            };
            // A last window that begins beyond the map is not one.
            let axis = |input: usize| {
                let axis = axis(input);
                Axis { output: axis.output - usize::from((axis.output - 1) * stride >= input), ..axis }
            };
            let (rows, columns) = (axis(height), axis(width));
            let layout = |splits, height, width| MapLayout { channels, splits, height, width };
            let pool = pooling::Geometry {
                input: layout(splits[0], height, width),
                output: layout(splits[1], rows.output, columns.output),
                rows,
                columns,
            };
            let lrn = Lrn { size: 5, k: 1.0, alpha: 0.3, beta: 0.75, channels, towers };
            let op = LrnPool { lrn, pool };
            let (count, blocks) = (40, 2);
            let mut random = Random(11);
            // Few different values, so that there are ties.
            let x = Map::random(pool.input, count, true, &mut random);
            let dy = Map::random(pool.output, count, false, &mut random);
            let new = |map: &MapLayout| vec![0.0; room(map, count)];
            let places = || vec![0; 2 * blocks * pool.output.block_len()];

            let (mut middle, mut y, mut won) = (new(&pool.input), new(&pool.output), places());
            lrn::forward(&mut ctx, engine, &lrn, &pool.input, blocks, &x.data, &mut middle);
            pooling::max_forward(
                &mut ctx,
                &pool,
                blocks,
                &middle,
                &mut y,
                false,
                Some(Record { places: &mut won, winners }),
            );
            let (mut fused, mut fused_won) = (new(&pool.output), places());
            let fused_record = Some(Record { places: &mut fused_won, winners });
            lrn_pool::forward(&mut ctx, engine, &op, blocks, &x.data, &mut fused, false, fused_record);
            assert_eq!(load(&pool.output, count, &fused), load(&pool.output, count, &y), "y {what}");
            assert!(fused_won == won, "winners {what}");
            fused.fill(0.0);
            lrn_pool::forward(&mut ctx, engine, &op, blocks, &x.data, &mut fused, false, None);
            assert_eq!(load(&pool.output, count, &fused), load(&pool.output, count, &y), "alone {what}");

            // After a ReLU: the same without those that are zero.
            let positive: Vec<f64> = x.values.iter().map(|v| v.max(0.0)).collect();
            let positive = store(&pool.input, count, &positive, 0.0);
            lrn::forward(&mut ctx, engine, &lrn, &pool.input, blocks, &positive, &mut middle);
            let mut y = new(&pool.output);
            let (mut won_positive, mut fused_positive) = (places(), places());
            let record_positive = Some(Record { places: &mut won_positive, winners });
            pooling::max_forward(&mut ctx, &pool, blocks, &middle, &mut y, true, record_positive);
            let record_positive = Some(Record { places: &mut fused_positive, winners });
            lrn_pool::forward(&mut ctx, engine, &op, blocks, &positive, &mut fused, true, record_positive);
            assert_eq!(load(&pool.output, count, &fused), load(&pool.output, count, &y), "positive {what}");
            assert!(fused_positive == won_positive, "winners of what is positive {what}");
            lrn_pool::forward(&mut ctx, engine, &op, blocks, &positive, &mut fused, true, None);
            assert_eq!(load(&pool.output, count, &fused), load(&pool.output, count, &y), "alone {what}");

            for relu in [false, true] {
                let (mut dmiddle, mut dx) = (new(&pool.input), new(&pool.input));
                pooling::max_backward(&mut ctx, engine, &pool, blocks, &dy.data, &won, &mut dmiddle);
                lrn::backward(&mut ctx, engine, &lrn, &pool.input, blocks, &x.data, &dmiddle, relu, &mut dx);
                let mut fused = new(&pool.input);
                lrn_pool::backward(&mut ctx, engine, &op, blocks, &x.data, &dy.data, &won, relu, &mut fused);
                let dx = load(&pool.input, count, &dx);
                let largest = dx.iter().fold(0f32, |a, b| a.max(b.abs()));
                for (i, (a, b)) in load(&pool.input, count, &fused).iter().zip(&dx).enumerate() {
                    let bound = (b.abs() + largest) / 256.0;
                    assert!((a - b).abs() <= bound, "dx {what}: element {i} is {a}, in two passes {b}");
                }
                // Where no window gives two gradients to one element, nothing was rounded in between.
                if stride >= size {
                    assert_eq!(load(&pool.input, count, &fused), dx, "dx {what}");
                }
            }
        }
    }
}
