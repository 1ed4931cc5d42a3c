//! Normalization and pooling on bf16 maps against their definitions in f64. Bounds as in `bf16.rs`.

mod common;

use alexnet_kernels::bf16::{MapLayout, PICTURES, lrn, pooling, spatial_lrn};
use alexnet_kernels::conv::Axis;
use alexnet_kernels::lrn::Lrn;
use alexnet_kernels::spatial_lrn::SpatialLrn;
use alexnet_kernels::{Context, Isa};
use common::Random;
use common::maps::{Map, assert_rounded, load, room};

#[test]
fn normalization_within_maps() {
    for isa in Isa::all() {
        let mut ctx = Context::new(isa, 2);
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
            let what = format!("{} {map:?} {size}", isa.name());
            let mut got = vec![0.0; room(&map, count)];
            spatial_lrn::forward(&mut ctx, &op, &map, 2, &x.data, &mut got);
            assert_rounded(&what, &load(&map, count, &got), &y, size * size, false);
            for relu in [false, true] {
                spatial_lrn::backward(&mut ctx, &op, &map, 2, &x.data, &dy.data, relu, &mut got);
                let want: Vec<f64> =
                    dx.iter().zip(&x.values).map(|(&d, &x)| if relu && x <= 0.0 { 0.0 } else { d }).collect();
                assert_rounded(&what, &load(&map, count, &got), &want, size * size, false);
            }
        }
    }
}

#[test]
fn normalization_across_maps() {
    for isa in Isa::all() {
        let mut ctx = Context::new(isa, 2);
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
            lrn::forward(&mut ctx, &op, &map, blocks, &x.data, &mut got);
            assert_rounded(&format!("y {isa:?} {op:?}"), &load(&map, count, &got), &y, 4, false);
            for relu in [false, true] {
                let mut got = vec![0.0; room(&map, count)];
                lrn::backward(&mut ctx, &op, &map, blocks, &x.data, &dy.data, relu, &mut got);
                let want: Vec<f64> =
                    dx.iter().zip(&x.values).map(|(d, x)| if relu && *x <= 0.0 { 0.0 } else { *d }).collect();
                assert_rounded(&format!("dx {isa:?} {op:?}"), &load(&map, count, &got), &want, 16, false);
            }
        }
    }
}

#[test]
fn max_pooling_between_splits() {
    for isa in Isa::all() {
        let mut ctx = Context::new(isa, 2);
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
            let mut got = vec![0.0; room(&g.output, count)];
            let mut winner = vec![0; 4 * g.output.block_len()];
            pooling::max_forward(&mut ctx, &g, 2, &x.data, &mut got, &mut winner);
            assert_rounded(&format!("y {isa:?} {g:?}"), &load(&g.output, count, &got), &y, 1, true);
            let every = pooling::Share::EveryMaximum { x: &x.data, y: &got };
            let shares = [(pooling::Share::Winner(&winner), &dx[0]), (every, &dx[1])];
            for ((share, dx), relu) in shares.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                let mut got = vec![0.0; room(&g.input, count)];
                let mask = relu.then_some(&x.data[..]);
                pooling::max_backward(&mut ctx, &g, 2, &dy.data, share, mask, &mut got);
                let want: Vec<f64> =
                    dx.iter().zip(&x.values).map(|(d, x)| if relu && *x <= 0.0 { 0.0 } else { *d }).collect();
                assert_rounded(&format!("dx {isa:?} {g:?}"), &load(&g.input, count, &got), &want, 4, true);
            }
        }
    }
}
