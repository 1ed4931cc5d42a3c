//! How every map lies: which border it needs, which are cut into splits, and how the pixels enter.

use crate::exec::plan::{Form, Kind, Plan};
use crate::exec::splits;
use crate::net::{Network, Op};
use alexnet_kernels::bf16::few::convert::{Entry, flat_len};
use alexnet_kernels::bf16::few::{Border, PictureLayout};

/// How a map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Positions of a map.
    Map(PictureLayout),
    /// A flat row of so many features.
    Flat(usize),
}

impl Layout {
    /// Pairs of one picture.
    pub fn picture_len(&self) -> usize {
        match self {
            Layout::Map(map) => map.picture_len(),
            Layout::Flat(features) => flat_len(*features),
        }
    }

    /// Features of a flat row.
    ///
    /// Panics if the map is not flat.
    pub fn features(&self) -> usize {
        match self {
            Layout::Flat(features) => *features,
            Layout::Map(_) => unreachable!("the plan puts a map where a flat row is"),
        }
    }

    /// The map.
    ///
    /// Panics if it is flat.
    pub fn map(&self) -> &PictureLayout {
        match self {
            Layout::Map(map) => map,
            Layout::Flat(_) => unreachable!("the plan puts a flat row where a map is"),
        }
    }
}

/// How pixels enter, and the layout of every map. A map has the border that the convolution behind it pads with;
/// stages that go position by position hand it on to the map before them.
///
/// # Errors
/// As [`splits::of`].
pub(super) fn of(net: &Network, plan: &Plan) -> Result<(Entry, Vec<Layout>), String> {
    let splits = splits::of(net, plan)?;
    let op = |i: usize| plan.stages[i].layers.clone().next().map(|layer| &net.layers[layer].op);
    let shape = net.input;
    let mut fold = 1;
    let mut layouts: Vec<Layout> = vec![];
    for (i, map) in plan.maps.iter().enumerate().rev() {
        if map.form == Form::Flat {
            layouts.push(Layout::Flat(map.shape.len()));
            continue;
        }
        let none = Border::default();
        let mut layout = PictureLayout {
            channels: map.shape.c,
            splits: splits[i],
            height: map.shape.h,
            width: map.shape.w,
            rows: none,
            columns: none,
        };
        if let Some(stage) = plan.stages.get(i) {
            match (stage.kind, op(i)) {
                (Kind::Conv { .. }, Some(Op::Conv(conv))) => {
                    let output = plan.maps[i + 1].shape;
                    if i == 0 && conv.stride > 1 && conv.groups == 1 {
                        // The window moves by one position of the folded map, which holds all that it reads.
                        fold = conv.stride;
                        let read = |windows: usize| windows - 1 + conv.kernel.div_ceil(fold);
                        layout.channels *= fold * fold;
                        (layout.height, layout.width) = (read(output.h), read(output.w));
                    } else {
                        let before = conv.pad.before;
                        let border = |windows: usize, size: usize| Border {
                            before,
                            after: ((windows - 1) * conv.stride + conv.kernel).saturating_sub(before + size),
                        };
                        layout.rows = border(output.h, layout.height);
                        layout.columns = border(output.w, layout.width);
                    }
                }
                (Kind::Lrn | Kind::SpatialLrn | Kind::Activation | Kind::Dropout, _) => {
                    if let Some(Layout::Map(next)) = layouts.last() {
                        (layout.rows, layout.columns) = (next.rows, next.columns);
                    }
                }
                _ => {}
            }
        }
        layouts.push(Layout::Map(layout));
    }
    layouts.reverse();
    let pad = match (fold, plan.stages.first().and_then(|_| op(0))) {
        (2.., Some(Op::Conv(conv))) => conv.pad.before,
        _ => 0,
    };
    let map = *layouts[0].map();
    let entry = Entry { channels: shape.c, height: shape.h, width: shape.w, fold, pad, map };
    Ok((entry, layouts))
}
