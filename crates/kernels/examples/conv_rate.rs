//! Rate of each convolution of the 2012 network, batch 128: `cargo run --release --example conv_rate -p alexnet-kernels`.

use alexnet_kernels::conv::{self, Axis, Epilogue, Fold, Geometry, Packed, WeightPlan};
use alexnet_kernels::{Context, Isa};
use std::time::Instant;

fn main() {
    let isa = Isa::best().expect("ALEXNET_ISA");
    let threads = std::env::args().nth(1).map_or(2, |t| t.parse().expect("threads"));
    let mut ctx = Context::new(isa, threads);
    let axis = |input, kernel, stride, pad, output| Axis { input, output, kernel, stride, pad };
    let same = |n, kernel: usize| axis(n, kernel, 1, kernel / 2, n);
    let layers = [
        (
            "conv1",
            12,
            96,
            1,
            axis(224, 11, 4, 0, 55),
            axis(57, 3, 1, 0, 55),
            Fold { kernel: 11, fold: 4 },
            105_415_200.0,
        ),
        ("conv2", 96, 256, 2, same(27, 5), same(27, 5), Fold { kernel: 5, fold: 1 }, 223_948_800.0),
        ("conv3", 256, 384, 1, same(13, 3), same(13, 3), Fold { kernel: 3, fold: 1 }, 149_520_384.0),
        ("conv4", 384, 384, 2, same(13, 3), same(13, 3), Fold { kernel: 3, fold: 1 }, 112_140_288.0),
        ("conv5", 384, 256, 2, same(13, 3), same(13, 3), Fold { kernel: 3, fold: 1 }, 74_760_192.0),
    ];
    for (name, c, k, groups, rows, columns, fold, macs) in layers {
        let g = Geometry { block: 32, c, k, groups, rows, columns };
        let random = |len: usize| {
            (0..len).map(|i| ((i * 2_654_435_761) >> 7 & 1023) as f32 / 512.0 - 1.0).collect::<Vec<_>>()
        };
        let (x, dy) = (random(g.input_len(4)), random(g.output_len(4)));
        let w = random(k * c / groups / fold.fold * rows.kernel * fold.kernel);
        let bias = random(k);
        let mut forward = Packed::for_forward(isa, &g);
        conv::pack_forward(&mut ctx, &g, fold, &w, &mut forward);
        let mut backward = Packed::for_backward(isa, &g);
        if fold.fold == 1 {
            conv::pack_backward(&mut ctx, &g, &w, &mut backward);
        }
        let (mut y, mut dx, mut dw, mut db) = (dy.clone(), x.clone(), w.clone(), bias.clone());
        let mut times = [vec![], vec![], vec![]];
        for _ in 0..6 {
            let t = Instant::now();
            conv::forward(&mut ctx, &g, 128, &x, &forward, &bias, Epilogue::BiasRelu, &mut y);
            times[0].push(t.elapsed());
            if fold.fold == 1 {
                let t = Instant::now();
                conv::backward_input(&mut ctx, &g, 128, &dy, &backward, None, &mut dx);
                times[1].push(t.elapsed());
            }
            let t = Instant::now();
            conv::backward_weight(
                &mut ctx,
                &g,
                fold,
                &WeightPlan::new(isa, &g),
                128,
                &x,
                &dy,
                &mut dw,
                &mut db,
            );
            times[2].push(t.elapsed());
        }
        for (pass, times) in ["forward", "input gradient", "weight gradient"].iter().zip(&mut times) {
            times.sort();
            if let (Some(best), Some(median)) = (times.first(), times.get(times.len() / 2)) {
                println!(
                    "{name} {pass:16} {:7.1} ms best {:7.1} median {:6.0} GFLOP/s best",
                    best.as_secs_f64() * 1e3,
                    median.as_secs_f64() * 1e3,
                    2.0 * macs * 128.0 / best.as_secs_f64() / 1e9
                );
            }
        }
    }
}
