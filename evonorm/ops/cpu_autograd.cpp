// The gradient of evonorm::forward on CPUs and GPUs. __init__.py registers the same in Python for the
// other devices. In C++ a call takes half the time, which makes a difference on small maps. Nothing
// here depends on the device, so CUDA's toolkit is not needed.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename F>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

using Parameter = const optional<Tensor>&;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;

Outputs forward(const Tensor& x, Parameter v, Parameter var, Parameter weight, Parameter bias,
                int64_t groups, double eps, c10::string_view kind) {
  static const auto op = find<decltype(forward)>("evonorm::forward");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, v, var, weight, bias, groups, eps, kind);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, Parameter v, Parameter var, Parameter weight, Parameter bias,
    const Tensor& stats, const Tensor& batch_stats, int64_t groups, double eps,
    c10::string_view kind) {
  static const auto op = find<decltype(backward)>("evonorm::backward");
  return op.call(dy, x, v, var, weight, bias, stats, batch_stats, groups, eps, kind);
}

Tensor formula(const Tensor& x, Parameter v, Parameter var, Parameter weight, Parameter bias,
               int64_t groups, double eps, c10::string_view kind) {
  static const auto op = find<decltype(formula)>("evonorm::formula");
  return op.call(x, v, var, weight, bias, groups, eps, kind);
}

struct EvoNorm : torch::autograd::Function<EvoNorm> {
  static constexpr int inputs = 5;  // x, v, var, weight, bias

  static variable_list forward(AutogradContext* ctx, const Tensor& x, Parameter v, Parameter var,
                               Parameter weight, Parameter bias, int64_t groups, double eps,
                               const std::string& kind) {
    auto [y, stats, batch_stats] = evonorm::forward(x, v, var, weight, bias, groups, eps, kind);
    const auto or_none = [](Parameter p) { return p.value_or(Tensor()); };
    ctx->mark_non_differentiable({stats, batch_stats});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {x, or_none(v), or_none(var), or_none(weight), or_none(bias), stats, batch_stats});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["kind"] = kind;
    return {y, stats, batch_stats};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dys) {
    variable_list gradients(inputs + 3);
    const Tensor& dy = dys[0];
    if (!dy.defined()) return gradients;
    variable_list in = ctx->get_saved_variables();
    std::array<bool, inputs> needed;
    for (int k = 0, edge = 0; k < inputs; k++) {  // an input that is None has no edge
      needed[k] = in[k].defined() && ctx->needs_input_grad(edge++);
    }
    const auto given = [&](int k) {
      return in[k].defined() ? optional<Tensor>(in[k]) : std::nullopt;
    };
    const int64_t groups = ctx->saved_data["groups"].toInt();
    const double eps = ctx->saved_data["eps"].toDouble();
    const std::string& kind = ctx->saved_data["kind"].toStringRef();
    if (!at::GradMode::is_enabled()) {
      auto [dx, dv, dvar, dweight, dbias] = evonorm::backward(
          dy, in[0], given(1), given(2), given(3), given(4), in[5], in[6], groups, eps, kind);
      const Tensor found[inputs] = {dx, dv, dvar, dweight, dbias};
      for (int k = 0; k < inputs; k++) {
        if (needed[k]) gradients[k] = found[k];
      }
      return gradients;
    }
    // A second derivative is wanted, so the gradient itself has to be differentiable.
    variable_list wanted;
    for (int k = 0; k < inputs; k++) {
      // The inputs are replaced by aliases, as one may depend on another (the batch variance on x).
      if (in[k].defined()) in[k] = in[k].view_as(in[k]);
      if (needed[k]) wanted.push_back(in[k]);
    }
    const Tensor y = formula(in[0], given(1), given(2), given(3), given(4), groups, eps, kind);
    const variable_list found = torch::autograd::grad({y}, wanted, {dy}, true, true, true);
    for (int k = 0, next = 0; k < inputs; k++) {
      if (needed[k]) gradients[k] = found[next++];
    }
    return gradients;
  }
};

Outputs differentiable(const Tensor& x, Parameter v, Parameter var, Parameter weight,
                       Parameter bias, int64_t groups, double eps, c10::string_view kind) {
  if (!at::GradMode::is_enabled()) return forward(x, v, var, weight, bias, groups, eps, kind);
  const variable_list y = EvoNorm::apply(x, v, var, weight, bias, groups, eps, std::string(kind));
  return {y[0], y[1], y[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(evonorm, AutogradCPU, m) { m.impl("forward", differentiable); }
TORCH_LIBRARY_IMPL(evonorm, AutogradCUDA, m) { m.impl("forward", differentiable); }

}  // namespace evonorm
