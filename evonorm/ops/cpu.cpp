// The operators on a CPU: what the loops of cpu_kernels.cpp need is worked out here, and their sums
// are turned into statistics and gradients. The formulas are explained in reference.py.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu_kernels.h"

namespace evonorm {
namespace {

using at::Tensor;
using std::optional;

constexpr int64_t GRAIN = 32768;  // values that are worth a thread
constexpr int64_t AT_ONCE = 4096;  // values of a sample, at least
constexpr int64_t CACHE = 1 << 19;  // bytes of a core's own

constexpr double LOG2_E = 1.44269504088896340736;

struct Kind {
  bool batch, centred;  // whether the statistics are deviations, or root mean squares
  char variant;

  explicit Kind(c10::string_view name) {
    TORCH_CHECK(
        name == "B0" || name == "B1" || name == "B2" || name == "S0" || name == "S1" || name == "S2",
        "kind should be one of B0, B1, B2, S0, S1 and S2, not ", name);
    batch = name[0] == 'B';
    variant = name[1];
    centred = batch ? variant == '0' : variant != '2';
  }
};

// A parameter (C,) or (N, C), or a constant in its place.
template <typename A>
class Parameter {
 public:
  Parameter(const optional<Tensor>& given, const Tensor& x, double otherwise, const char* name)
      : otherwise_(otherwise) {
    if (!given) return;
    const bool per_sample = given->dim() == 2 && given->size(0) == x.size(0);
    TORCH_CHECK(
        (given->dim() == 1 || per_sample) && given->size(-1) == x.size(1), name,
        " should have the shape (", x.size(1), ",), or (N, C) for one per sample, not ",
        given->sizes());
    kept_ = given->to(c10::CppTypeToScalarType<A>::value).contiguous();
    values_ = kept_.template const_data_ptr<A>();
    step_ = given->dim() == 2 ? x.size(1) : 0;
  }

  A operator()(int64_t n, int64_t c) const { return values_ ? values_[n * step_ + c] : otherwise_; }

 private:
  Tensor kept_;
  const A* values_ = nullptr;
  int64_t step_ = 0;
  A otherwise_;
};

// Some channels of some samples.
struct Block {
  int64_t n_begin, n_end, c_begin, c_end;
};

template <typename T>
const Kernels<T>& kernels() {
  static const std::string capability = at::get_cpu_capability();
#ifdef EVONORM_X86
  if (capability == "AVX512") return avx512<T>();
  if (capability == "AVX2") return avx2<T>();
#endif
  return baseline<T>();
}

template <typename T> struct TorchType { using type = T; };
template <> struct TorchType<BFloat16> { using type = at::BFloat16; };
template <> struct TorchType<Half> { using type = at::Half; };

struct Moments {
  double mean = 0, variance = 0;
};

// What forward and backward have in common.
template <typename T>
struct Problem {
  using A = typename Wide<T>::type;

  const Kind kind;
  const Tensor x;
  const bool whole;  // a B takes the variance of the batch itself, which ties its samples together
  const int64_t batch, channels, plane, groups;  // a statistic of a B is one channel's
  const at::MemoryFormat format;
  int64_t of_group, width;  // channels: of a group, and that are worked on together
  Pass<T> reduced{}, pass{};  // for the sums, and for what is then done with them
  std::unique_ptr<double[]> kept_sums;
  std::unique_ptr<A[]> coefficients;

  // `by_group`: an S needs no sums of single channels.
  Problem(const Tensor& given, Kind kind_, bool whole_, int64_t groups_, bool by_group,
          int number_of_sums, int number_of_coefficients)
      : kind(kind_),
        x(given),
        whole(whole_),
        batch(x.size(0)),
        channels(x.size(1)),
        plane(x.size(2) * x.size(3)),
        groups(kind.batch ? channels : groups_),
        format(x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast) {
    TORCH_CHECK(groups > 0 && channels % groups == 0, groups, " groups don't divide ", channels, " channels");
    // A 1x1 map is both, and as channels_last its vectors are full.
    const bool last = plane == 1 || format == at::MemoryFormat::ChannelsLast;
    of_group = channels / groups;
    const int64_t most = AT_ONCE / std::max<int64_t>(of_group * plane, 1);
    width = of_group * std::min(std::max<int64_t>(most, 1), groups);
    pass = over(channels, plane, last);
    // The channels of a group are one long plane.
    reduced = by_group && !last ? over(groups, of_group * plane, last) : pass;
    kept_sums.reset(new double[batch * reduced.channels * reduced.pieces * number_of_sums]);
    reduced.sums = kept_sums.get();
    coefficients.reset(new A[number_of_coefficients * batch * channels]);
    for (int k = 0; k < number_of_coefficients; k++) pass.coefficients[k] = coefficient(k);
    std::copy(std::begin(pass.coefficients), std::end(pass.coefficients), reduced.coefficients);
  }

  Pass<T> over(int64_t of_channels, int64_t of_plane, bool last) const {
    Pass<T> p{};
    const int64_t most = last ? std::max<int64_t>(65536 / of_channels, 1) : 16384;
    p.channels_last = last;
    p.batch = batch;
    p.channels = of_channels;
    p.plane = of_plane;
    p.pieces = std::max<int64_t>((of_plane + most - 1) / most, 1);
    p.piece = (of_plane + p.pieces - 1) / p.pieces;
    p.x = data(x);
    return p;
  }

  A* coefficient(int k) const { return coefficients.get() + k * batch * channels; }

  // Of the B series: max(floor, v * x + s), max(floor, (x + 1) * s) or max(floor, s - x).
  void set_denominator(int64_t plane, A v, A s, A floor) {
    coefficient(Batch::SLOPE)[plane] = kind.variant == '0' ? v : kind.variant == '1' ? s : A(-1);
    coefficient(Batch::RISE)[plane] = s;
    coefficient(Batch::FLOOR)[plane] = floor;
  }

  const T* data(const Tensor& t) const {
    return reinterpret_cast<const T*>(t.template const_data_ptr<typename TorchType<T>::type>());
  }

  // A tensor like x for the result.
  Tensor output() {
    Tensor out = at::empty(x.sizes(), x.options().memory_format(format));
    pass.out = reinterpret_cast<T*>(out.template data_ptr<typename TorchType<T>::type>());
    return out;
  }

  // f(plane n * C + c, n, c)
  template <typename F>
  void each(const Block& b, F f) const {
    for (int64_t n = b.n_begin; n < b.n_end; n++) {
      for (int64_t c = b.c_begin; c < b.c_end; c++) f(n * channels + c, n, c);
    }
  }

  // f(group n * groups + g, its planes)
  template <typename F>
  void each_group(const Block& b, F f) const {
    for (int64_t c = b.c_begin; c < b.c_end; c += of_group) {
      f(b.n_begin * groups + c / of_group, Block{b.n_begin, b.n_end, c, c + of_group});
    }
  }

  // For each block prepare() sets what coefficients `reduce` takes, finish() what else `map` does.
  template <typename Prepare, typename Finish>
  void run(Prepare prepare, Kernel<T> reduce, Finish finish, Kernel<T> map) const {
    const int64_t of_sample = (channels + width - 1) / width, number = whole ? of_sample : batch * of_sample;
    const auto in_parallel = [&](int64_t items, auto f) {
      const int64_t values = batch * channels * plane;
      at::parallel_for(0, items, std::max<int64_t>(GRAIN * items / std::max<int64_t>(values, 1), 1), f);
    };
    const auto on_blocks = [&](auto f) {
      in_parallel(number, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) {
          const int64_t n = whole ? 0 : k / of_sample, c = k % of_sample * width;
          f(Block{n, whole ? batch : n + 1, c, std::min(c + width, channels)});
        }
      });
    };
    // From far apart, and too much to stay in the cache.
    const bool scattered = whole && plane * sizeof(T) < 4096 && batch * width * plane * sizeof(T) > CACHE;
    if (!pass.channels_last && !scattered && number >= 2 * at::get_num_threads()) {
      const auto on = [&](Kernel<T> kernel, const Pass<T>& p, const Block& b) {
        const int64_t together = channels / p.channels;
        for (int64_t n = b.n_begin; n < b.n_end; n++) {
          kernel(p, (n * p.channels + b.c_begin / together) * p.pieces,
                 (b.c_end - b.c_begin) / together * p.pieces);
        }
      };
      // Block by block, as what was just read for the reduction is in the cache still.
      on_blocks([&](const Block& b) {
        prepare(b);
        on(reduce, reduced, b);
        finish(b);
        on(map, pass, b);
      });
      return;
    }
    const auto on_all = [&](Kernel<T> kernel, const Pass<T>& p) {
      in_parallel((p.channels_last ? batch : batch * p.channels) * p.pieces,
                  [&](int64_t begin, int64_t end) { kernel(p, begin, end - begin); });
    };
    on_blocks(prepare);
    on_all(reduce, reduced);
    on_blocks(finish);
    on_all(map, pass);
  }

  Moments moments_of_plane(int64_t i) const {
    const double* part = reduced.sums + i * reduced.pieces * MOMENTS;
    double mean = part[0], squares = part[1];
    for (int64_t k = 1, count = reduced.piece; k < reduced.pieces; k++) {
      part += MOMENTS;
      const int64_t more = std::min(reduced.piece, reduced.plane - k * reduced.piece);
      const double delta = part[0] - mean, share = double(more) / (count + more);
      mean += delta * share;
      squares += part[1] + delta * delta * count * share;
      count += more;
    }
    return {mean, squares / reduced.plane};
  }

  // Of planes together, which all have the same size.
  Moments moments_of_planes(int64_t first, int64_t count) const {
    if (count == 1) return moments_of_plane(first);
    Moments total;
    for (int64_t i = first; i < first + count; i++) total.mean += moments_of_plane(i).mean;
    total.mean /= count;
    for (int64_t i = first; i < first + count; i++) {
      const Moments m = moments_of_plane(i);
      total.variance += m.variance + (m.mean - total.mean) * (m.mean - total.mean);
    }
    total.variance /= count;
    return total;
  }

  template <int number>
  std::array<double, number> sums_of_plane(int64_t i) const {
    std::array<double, number> total{};
    const double* part = reduced.sums + i * reduced.pieces * number;
    for (int64_t piece = 0; piece < reduced.pieces; piece++, part += number) {
      for (int k = 0; k < number; k++) total[k] += part[k];
    }
    return total;
  }
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward_as(
    const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, int64_t groups, double eps,
    Kind kind) {
  using A = typename Wide<T>::type;
  const bool whole = kind.batch && !var_;
  Problem<T> p(x, kind, whole, groups, !kind.batch, MOMENTS,
               kind.batch ? int(Batch::FORWARD) : int(Sample::FORWARD));
  const int64_t N = p.batch, C = p.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight"),
      bias(bias_, x, 0, "bias");
  const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
  Tensor y = p.output(), stats = at::empty({2, N, p.groups}, options);
  Tensor batch_stats = at::empty({2, whole ? C : 0}, options);
  if (whole && x.numel() == 0) batch_stats.zero_();
  A* mean = stats.template data_ptr<A>();
  A* scale = mean + N * p.groups;
  A* of_batch = batch_stats.template data_ptr<A>();
  const auto scale_of = [&](const Moments& m) {
    return std::sqrt(m.variance + (kind.centred ? 0 : m.mean * m.mean) + eps);
  };

  const int64_t parts = p.reduced.channels / p.groups;  // whose moments were taken, of a group
  const auto finish_sample = [&](int64_t u, const Block& group) {
    const Moments m = p.moments_of_planes(u * parts, parts);
    mean[u] = m.mean;
    scale[u] = scale_of(m);
    const A factor = 1 / scale[u];
    p.each(group, [&](int64_t i, int64_t n, int64_t c) {
      p.coefficient(Sample::RATE)[i] = A(-LOG2_E) * v(n, c);
      p.coefficient(Sample::A)[i] = weight(n, c) * factor;
      p.coefficient(Sample::B)[i] = bias(n, c);
    });
  };

  const auto finish_batch = [&](const Block& b) {
    const int64_t width = b.c_end - b.c_begin;
    std::vector<double> means(width), variances(width);
    if (whole) {
      p.each(b, [&](int64_t i, int64_t, int64_t c) {
        means[c - b.c_begin] += p.moments_of_plane(i).mean / N;
      });
      p.each(b, [&](int64_t i, int64_t, int64_t c) {
        const Moments m = p.moments_of_plane(i);
        const double delta = m.mean - means[c - b.c_begin];
        variances[c - b.c_begin] += (m.variance + delta * delta) / N;
      });
      std::copy(means.begin(), means.end(), of_batch + b.c_begin);
      std::copy(variances.begin(), variances.end(), of_batch + C + b.c_begin);
    }
    std::vector<A> floors(width);
    for (int64_t k = 0; k < width; k++) {
      floors[k] = std::sqrt((whole ? variances[k] : var(0, b.c_begin + k)) + eps);
    }
    p.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const Moments m = p.moments_of_plane(i);
      mean[i] = m.mean;
      scale[i] = scale_of(m);
      p.set_denominator(i, v(n, c), scale[i], floors[c - b.c_begin]);
      p.coefficient(Batch::A)[i] = weight(n, c);
      p.coefficient(Batch::B)[i] = bias(n, c);
    });
  };

  if (x.numel() == 0) return {y, stats, batch_stats};
  const Kernels<T>& k = kernels<T>();
  const auto nothing = [](const Block&) {};
  if (kind.batch) {
    p.run(nothing, k.moments, finish_batch, k.batch_forward);
  } else {
    const auto finish = [&](const Block& b) { p.each_group(b, finish_sample); };
    p.run(nothing, k.moments, finish, k.sample_forward);
  }
  return {y, stats, batch_stats};
}

// A gradient (N, C) as one of a parameter: summed over the samples for (C,), nothing for None.
template <typename A>
Tensor gradient(const double* values, const optional<Tensor>& parameter, int64_t n, int64_t c) {
  if (!parameter) return at::empty({0}, at::kFloat);
  Tensor total = at::empty(parameter->sizes(), c10::CppTypeToScalarType<A>::value);
  A* out = total.template data_ptr<A>();
  if (parameter->dim() == 2) {
    std::copy(values, values + n * c, out);
  } else {
    std::vector<double> sum(c);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = 0; k < c; k++) sum[k] += values[i * c + k];
    }
    std::copy(sum.begin(), sum.end(), out);
  }
  return total.to(parameter->scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_as(
    const Tensor& dy, const Tensor& x, const optional<Tensor>& v_, const optional<Tensor>& var_,
    const optional<Tensor>& weight_, const optional<Tensor>& bias_, const Tensor& stats,
    const Tensor& batch_stats, int64_t groups, double eps, Kind kind) {
  using A = typename Wide<T>::type;
  const bool whole = kind.batch && !var_;
  Problem<T> p(x, kind, whole, groups, false, kind.batch ? int(Batch::SUMS) : int(Sample::SUMS),
               kind.batch ? int(Batch::BACKWARD) : int(Sample::BACKWARD));
  const int64_t N = p.batch, C = p.channels;
  const Parameter<A> v(v_, x, 1, "v"), var(var_, x, 0, "var"), weight(weight_, x, 1, "weight");
  TORCH_CHECK(stats.is_contiguous() && stats.numel() == 2 * N * p.groups &&
              batch_stats.is_contiguous() && batch_stats.numel() == (whole ? 2 * C : 0),
              "stats and batch_stats should be those of the forward pass");
  p.reduced.dy = p.pass.dy = p.data(dy);
  Tensor dx = p.output();
  const A* mean = stats.template const_data_ptr<A>();
  const A* scale = mean + N * p.groups;
  const A* of_batch = batch_stats.template const_data_ptr<A>();
  // Of each sample and channel.
  std::unique_ptr<double[]> gradients(new double[4 * N * C]);
  double *dv = gradients.get(), *dvar = dv + N * C, *dweight = dvar + N * C, *dbias = dweight + N * C;

  const auto prepare_sample = [&](int64_t u, const Block& group) {
    const A factor = 1 / scale[u];
    p.each(group, [&](int64_t i, int64_t n, int64_t c) {
      p.coefficient(Sample::RATE)[i] = A(-LOG2_E) * v(n, c);
      p.coefficient(Sample::A)[i] = weight(n, c) * factor;
    });
  };

  const auto finish_sample = [&](int64_t u, const Block& group) {
    const double centre = mean[u], r = 1. / scale[u];
    double along = 0;  // dy * num * weight, summed over the group
    p.each(group, [&](int64_t i, int64_t n, int64_t c) {
      const auto sums = p.template sums_of_plane<Sample::SUMS>(i);
      const double w = weight(n, c);
      along += w * sums[Sample::BY_SCALE];
      dv[i] = w * r * sums[Sample::BY_V];
      dweight[i] = sums[Sample::BY_SCALE] * r;
      dbias[i] = sums[Sample::BY_BIAS];
    });
    const double slope = -along * r * r * r / (p.of_group * p.plane);
    p.each(group, [&](int64_t i, int64_t, int64_t) {
      p.coefficient(Sample::CENTRE)[i] = centre;
      p.coefficient(Sample::P)[i] = slope;
      p.coefficient(Sample::Q)[i] = kind.centred ? 0 : slope * centre;
    });
  };

  const auto prepare_batch = [&](const Block& b) {
    p.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const double of_channel = whole ? of_batch[C + c] : var(0, c);
      p.set_denominator(i, v(n, c), scale[i], std::sqrt(of_channel + eps));
      p.coefficient(Batch::A)[i] = weight(n, c);
    });
  };

  const auto finish_batch = [&](const Block& b) {
    std::vector<double> by_var(b.c_end - b.c_begin);
    p.each(b, [&](int64_t i, int64_t n, int64_t c) {
      const auto sums = p.template sums_of_plane<Batch::SUMS>(i);
      const double w = weight(n, c);
      double by_scale = -w * sums[Batch::BY_RISE];
      if (kind.variant == '1') by_scale -= w * sums[Batch::BY_SLOPE];
      const double slope = by_scale / (double(scale[i]) * p.plane);
      dv[i] = -w * sums[Batch::BY_SLOPE];
      dvar[i] = -w * sums[Batch::BY_FLOOR] / (2 * p.coefficient(Batch::FLOOR)[i]);
      dweight[i] = sums[Batch::BY_SCALE];
      dbias[i] = sums[Batch::BY_BIAS];
      by_var[c - b.c_begin] += dvar[i];
      p.coefficient(Batch::CENTRE)[i] = mean[i];
      p.coefficient(Batch::P)[i] = slope;
      p.coefficient(Batch::Q)[i] = kind.centred ? 0 : slope * mean[i];
    });
    if (!whole) return;
    p.each(b, [&](int64_t i, int64_t, int64_t c) {
      const double slope = 2 * by_var[c - b.c_begin] / (N * p.plane);
      p.coefficient(Batch::P)[i] += slope;
      p.coefficient(Batch::Q)[i] += slope * (mean[i] - of_batch[c]);
    });
  };

  const Kernels<T>& k = kernels<T>();
  if (x.numel() == 0) {
    std::fill(dv, dv + 4 * N * C, 0.);
  } else if (kind.batch) {
    p.run(prepare_batch, k.batch_sums, finish_batch, k.batch_backward);
  } else {
    const auto prepare = [&](const Block& b) { p.each_group(b, prepare_sample); };
    const auto finish = [&](const Block& b) { p.each_group(b, finish_sample); };
    p.run(prepare, k.sample_sums, finish, k.sample_backward);
  }
  return {dx, gradient<A>(dv, v_, N, C), gradient<A>(dvar, var_, N, C),
          gradient<A>(dweight, weight_, N, C), gradient<A>(dbias, bias_, N, C)};
}

// x as it is when contiguous or channels_last.
Tensor dense(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4, "x should be (N, C, H, W), not of shape ", x.sizes());
  return x.contiguous(x.is_contiguous() ? at::MemoryFormat::Contiguous : x.suggest_memory_format());
}

template <typename F>
auto by_type(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case at::kFloat: return f(float());
    case at::kDouble: return f(double());
    case at::kBFloat16: return f(BFloat16());
    case at::kHalf: return f(Half());
    default: TORCH_CHECK_TYPE(false, "x should be floating-point, not ", x.scalar_type());
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& x, const optional<Tensor>& v, const optional<Tensor>& var,
    const optional<Tensor>& weight, const optional<Tensor>& bias, int64_t groups, double eps,
    c10::string_view kind) {
  return by_type(x, [&](auto t) {
    return forward_as<decltype(t)>(dense(x), v, var, weight, bias, groups, eps, Kind(kind));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const optional<Tensor>& v, const optional<Tensor>& var,
    const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& stats,
    const Tensor& batch_stats, int64_t groups, double eps, c10::string_view kind) {
  const Tensor in = dense(x);
  const auto format = in.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  return by_type(in, [&](auto t) {
    return backward_as<decltype(t)>(dy.to(x.scalar_type()).contiguous(format), in, v, var, weight,
                                    bias, stats, batch_stats, groups, eps, Kind(kind));
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(evonorm, CPU, m) {
  m.impl("forward", forward);
  m.impl("backward", backward);
}

}  // namespace evonorm
