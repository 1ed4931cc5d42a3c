//! Rate of each convolution of the 2012 network in bf16, batch 128:
//! `cargo run --release --example bf16_rate -p alexnet-kernels -- [threads]`.

use alexnet_kernels::Context;
use alexnet_kernels::bf16::conv::{self, Epilogue, Fold, Geometry, Packed, WeightPlan};
use alexnet_kernels::bf16::convert::{pair_pictures, paired_len};
use alexnet_kernels::bf16::{Engine, MapLayout, TAIL, pair, pairs_mut};
use alexnet_kernels::conv::Axis;
use std::time::Instant;

fn main() {
    let engine = Engine::best().expect("ALEXNET_ISA");
    let threads = std::env::args().nth(1).map_or(2, |t| t.parse().expect("threads"));
    let mut ctx = Context::new(engine.isa(), threads);
    let axis = |input, kernel, stride, pad, output| Axis { input, output, kernel, stride, pad };
    let same = |n, kernel: usize| axis(n, kernel, 1, kernel / 2, n);
    let layers = [
        ("conv1", [48, 1], [96, 2], 1, axis(57, 3, 1, 0, 55), Fold { kernel: 11, fold: 4 }, 105_415_200.0),
        ("conv2", [96, 2], [256, 2], 2, same(27, 5), Fold { kernel: 5, fold: 1 }, 223_948_800.0),
        ("conv3", [256, 1], [384, 2], 1, same(13, 3), Fold { kernel: 3, fold: 1 }, 149_520_384.0),
        ("conv4", [384, 2], [384, 2], 2, same(13, 3), Fold { kernel: 3, fold: 1 }, 112_140_288.0),
        ("conv5", [384, 2], [256, 2], 2, same(13, 3), Fold { kernel: 3, fold: 1 }, 74_760_192.0),
    ];
    for (name, c, k, groups, one, fold, macs) in layers {
        let map = |c: [usize; 2], side| MapLayout { channels: c[0], splits: c[1], height: side, width: side };
        let g = Geometry {
            input: map(c, one.input),
            output: map(k, one.output),
            groups,
            rows: one,
            columns: one,
        };
        let random = |len: usize| {
            (0..len).map(|i| ((i * 2_654_435_761) >> 7 & 1023) as f32 / 512.0 - 1.0).collect::<Vec<_>>()
        };
        let random_map = |layout: &MapLayout| {
            let mut data = vec![0.0; 4 * layout.block_len() + TAIL];
            for (i, p) in pairs_mut(&mut data).iter_mut().enumerate() {
                *p = pair((i * 2_654_435_761 >> 7 & 1023) as f32 - 511.0, (i * 40_503 & 1023) as f32 - 511.0);
            }
            data
        };
        let (x, dy) = (random_map(&g.input), random_map(&g.output));
        let w = random(g.output.channels * c[0] / groups / fold.fold / fold.fold * fold.kernel * fold.kernel);
        let bias = random(k[0]);
        let mut forward = Packed::for_forward(&g);
        let mut backward = Packed::for_backward(&g);
        let mut plan = WeightPlan::new(&g, 4);
        let (mut y, mut dx, mut dw, mut db) = (dy.clone(), x.clone(), w.clone(), bias.clone());
        let mut paired = vec![0.0; paired_len(&g.input, 4)];
        let mut times = [vec![], vec![], vec![], vec![], vec![]];
        for _ in 0..6 {
            let t = Instant::now();
            conv::forward(&mut ctx, engine, &g, 128, &x, &forward, &bias, Epilogue::BiasRelu, &mut y);
            times[0].push(t.elapsed());
            let t = Instant::now();
            if fold.fold == 1 {
                conv::backward_input(&mut ctx, engine, &g, 128, &dy, &backward, None, &mut dx);
            }
            times[1].push(t.elapsed());
            let t = Instant::now();
            conv::backward_weight(&mut ctx, engine, &g, fold, &mut plan, 128, &paired, &dy, &mut dw, &mut db);
            times[2].push(t.elapsed());
            let t = Instant::now();
            pair_pictures(&mut ctx, engine, &g.input, 4, &x, &mut paired);
            times[3].push(t.elapsed());
            let t = Instant::now();
            conv::pack_forward(&mut ctx, &g, fold, &w, &mut forward);
            if fold.fold == 1 {
                conv::pack_backward(&mut ctx, &g, &w, &mut backward);
            }
            times[4].push(t.elapsed());
        }
        let passes = ["forward", "input gradient", "weight gradient", "pairing pictures", "packing weights"];
        for (pass, times) in passes.iter().zip(&mut times) {
            times.sort();
            let (best, median) = (times[0], times[times.len() / 2]);
            println!(
                "{} {name} {pass:16} {:7.2} ms best {:7.2} median {:6.0} GFLOP/s best",
                engine.name(),
                best.as_secs_f64() * 1e3,
                median.as_secs_f64() * 1e3,
                2.0 * macs * 128.0 / best.as_secs_f64() / 1e9
            );
        }
    }
}
