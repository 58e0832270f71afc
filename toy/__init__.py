"""The implicit bias of ERM and of Mixup on separable toy data.

`python -m toy` draws the two toy figures of the MixupE talk; `python -m toy STUDY` runs one study
(bias, descent, soft, sweep, relu, boundary, separable). The same as functions:

| module            | what it holds                                                             |
| ----------------- | ------------------------------------------------------------------------- |
| `toy.data`        | sets: Soudry et al.'s, clouds with a planted margin, moons, rings, digits |
| `toy.max_margin`  | the hard-margin direction, duals, KKT residuals; proofs of separability   |
| `toy.pairs`       | sums over pairs and λ that cost n and not n² numbers, in log space        |
| `toy.objective`   | ERM, signed and soft-label Mixup, exact over pairs and λ                  |
| `toy.descent`     | GD, SGD, momentum, Adam on many runs at once                              |
| `toy.flow`        | gradient flow in log time, to t = 1e30 or 1e400                           |
| `toy.rates`       | fitted exponents beside their theory; what Beta(α, α) does to them        |
| `toy.minimiser`   | soft-label Mixup's finite minimiser, and when there is none               |
| `toy.homogeneous` | the normalised margin of a two-layer ReLU network                         |
| `toy.boundary`    | decision boundaries of a small network                                    |
| `toy.studies`     | each study as settings → record                                           |

What "the same implicit bias" means. On a linear model, mixing label-absorbed points z = y x
(`mixup-signed`) keeps ERM's bias: the mixed points lie in the convex hull of the z, the direction
is ERM's max margin, and loss ~ 1/t, ‖w‖ ~ log t/γ, margin gap ~ 1/log t, angle gap ~ 1/log² t all
hold; only the residual w − ŵ log t reaches its limit more slowly, like (log t)^−α. Mixing labels as
Mixup does (`mixup-soft`) does not: the loss has a finite minimiser, in a direction of its own.
"""
