//! How every map lies: which are cut into splits, and how the pixels enter.

use crate::error::{Error, Result};
use crate::exec::plan::{Form, Kind, Plan};
use crate::net::{self, Network, Op, PoolKind};
use alexnet_kernels::bf16::MapLayout;
use alexnet_kernels::bf16::convert::{Entry, flat};

/// Most channels of a folded position: beyond, a strided first convolution is computed as it stands.
const MOST_FOLDED: usize = 64;

/// Rows of a window times splits: the runs of a product that the kernels plan for.
const MOST_RUNS: usize = 64;

/// How pixels enter, and the layout of every map. A map that a grouped convolution writes or reads is split at its groups;
/// stages that go position by position have the same splits on both sides.
pub(super) fn of(net: &Network, plan: &Plan) -> Result<(Entry, Vec<MapLayout>)> {
    let groups = |stage: usize| match plan.stages.get(stage) {
        Some(stage) if matches!(stage.kind, Kind::Conv { .. }) => match &net.layers[stage.layers.start].op {
            Op::Conv(conv) => conv.groups,
            _ => 1,
        },
        _ => 1,
    };
    let count = plan.maps.len();
    let mut splits: Vec<usize> =
        (0..count).map(|i| lcm(groups(i), if i > 0 { groups(i - 1) } else { 1 })).collect();
    // Splits spread along the stages that keep them, both ways; at most once over each.
    for _ in 0..count {
        for (i, stage) in plan.stages.iter().enumerate() {
            let both = lcm(splits[i], splits[i + 1]);
            let odd = !(plan.maps[i].shape.c / both).is_multiple_of(2);
            let keeps = match stage.kind {
                Kind::Conv { .. } | Kind::Linear { .. } | Kind::Flatten => false,
                // Max pooling takes pairs from one layout to another, if a pair of one is a pair of the other.
                Kind::Pool => both > 1 && (odd || pools_average(net, plan, i)),
                Kind::Activation | Kind::Lrn | Kind::SpatialLrn | Kind::Dropout | Kind::BatchNorm => true,
            };
            if keeps {
                (splits[i], splits[i + 1]) = (both, both);
            }
        }
    }
    let layouts = plan.maps.iter().zip(&splits).map(|(map, &splits)| match map.form {
        Form::Flat => flat(map.shape.len()),
        _ => MapLayout { channels: map.shape.c, splits, height: map.shape.h, width: map.shape.w },
    });
    let mut layouts: Vec<MapLayout> = layouts.collect();
    for (map, layout) in plan.maps.iter().zip(&layouts) {
        if !layout.channels.is_multiple_of(layout.splits) {
            return Err(Error::Config(format!(
                "a map of {} cannot be cut for groups of {}; --precision f32 computes it",
                map.shape, layout.splits
            )));
        }
    }
    for (i, stage) in plan.stages.iter().enumerate() {
        let Some(Op::Conv(conv)) = stage.layers.clone().next().map(|layer| &net.layers[layer].op) else {
            continue;
        };
        // Neighbours' groups split the maps of a convolution further than its own.
        let runs = layouts[i].splits.max(layouts[i + 1].splits) / conv.groups * conv.kernel;
        if runs > MOST_RUNS {
            return Err(Error::Config(format!(
                "layer {}: {runs} rows of windows over the groups around it, and bf16 takes {MOST_RUNS}; --precision \
                 f32 computes it",
                net.layers[stage.layers.start].name
            )));
        }
    }
    let mut entry = Entry {
        channels: net.input.c,
        height: net.input.h,
        width: net.input.w,
        fold: 1,
        pad: 0,
        map: layouts[0],
    };
    if let Some(Op::Conv(conv)) = net.layers.first().map(|l| &l.op) {
        let folded = net.input.c * conv.stride * conv.stride;
        if conv.stride > 1 && conv.groups == 1 && folded <= MOST_FOLDED {
            let output = plan.maps[1].shape;
            let read = |output: usize| output - 1 + conv.kernel.div_ceil(conv.stride);
            layouts[0] =
                MapLayout { channels: folded, splits: 1, height: read(output.h), width: read(output.w) };
            entry = Entry { fold: conv.stride, pad: conv.pad.before, map: layouts[0], ..entry };
        }
    }
    Ok((entry, layouts))
}

fn pools_average(net: &Network, plan: &Plan, stage: usize) -> bool {
    let layer = plan.stages[stage].layers.start;
    matches!(&net.layers[layer].op, Op::Pool(net::Pool { kind: PoolKind::Average, .. }))
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
