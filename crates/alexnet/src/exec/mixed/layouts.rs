//! How every map lies: which are cut into splits, and how the pixels enter.

use crate::exec::plan::{Form, Plan};
use crate::exec::splits;
use crate::net::{Network, Op};
use alexnet_kernels::bf16::MapLayout;
use alexnet_kernels::bf16::conv::MOST_RUNS;
use alexnet_kernels::bf16::convert::flat;
use alexnet_kernels::bf16::entry::Entry;

/// Most channels of a folded position: beyond, a strided first convolution is computed as it stands.
const MOST_FOLDED: usize = 64;

/// How pixels enter, and the layout of every map.
///
/// # Errors
/// Why there is none.
pub(super) fn of(net: &Network, plan: &Plan) -> Result<(Entry, Vec<MapLayout>), String> {
    let splits = splits::of(net, plan)?;
    let layouts = plan.maps.iter().zip(&splits).map(|(map, &splits)| match map.form {
        Form::Flat => flat(map.shape.len()),
        _ => MapLayout { channels: map.shape.c, splits, height: map.shape.h, width: map.shape.w },
    });
    let mut layouts: Vec<MapLayout> = layouts.collect();
    for (i, stage) in plan.stages.iter().enumerate() {
        let Some(Op::Conv(conv)) = stage.layers.clone().next().map(|layer| &net.layers[layer].op) else {
            continue;
        };
        // Neighbours' groups split the maps of a convolution further than its own.
        let runs = layouts[i].splits.max(layouts[i + 1].splits) / conv.groups * conv.kernel;
        if runs > MOST_RUNS {
            let name = &net.layers[stage.layers.start].name;
            return Err(format!(
                "layer {name}: {runs} rows of windows over the groups around it, and bf16 takes {MOST_RUNS}"
            ));
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
            let output = net.trace().map_err(|error| error.to_string())?[0].output;
            let read = |output: usize| output - 1 + conv.kernel.div_ceil(conv.stride);
            layouts[0] =
                MapLayout { channels: folded, splits: 1, height: read(output.h), width: read(output.w) };
            entry = Entry { fold: conv.stride, pad: conv.pad.before, map: layouts[0], ..entry };
        }
    }
    Ok((entry, layouts))
}
