// How the kernels of cpu_kernels.cpp are run over a tensor, and where they find their coefficients
// and leave their sums. The words (plane, piece, slab) are explained in cpu_kernels.h.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "cpu_kernels.h"

namespace evonorm {

constexpr int64_t GRAIN = 32768;  // how many values are worth a thread
constexpr int64_t SLAB_VALUES = 8192;  // of one sample in a slab at most, unless one group has more
constexpr int64_t CACHE = 1 << 19;  // bytes of the cache that a core has for itself

struct Kind {
  bool series_b;  // one of B0, B1, B2, not of S0, S1, S2
  bool centred;  // its statistics are standard deviations, not root mean squares
  char variant;  // '0', '1' or '2'

  explicit Kind(c10::string_view name) {
    TORCH_CHECK(
        name == "B0" || name == "B1" || name == "B2" || name == "S0" || name == "S1" || name == "S2",
        "kind should be one of B0, B1, B2, S0, S1 and S2, not ", name);
    series_b = name[0] == 'B';
    variant = name[1];
    centred = series_b ? variant == '0' : variant != '2';
  }
};

template <typename T> struct TorchType { using type = T; };
template <> struct TorchType<BFloat16> { using type = at::BFloat16; };
template <> struct TorchType<Half> { using type = at::Half; };

// The planes of some channels of some samples.
struct Slab {
  int64_t n_begin, n_end, c_begin, c_end;

  int64_t channels() const { return c_end - c_begin; }
};

struct Moments {
  double mean = 0, variance = 0;
};

template <typename T> class Work;

// What the forward and the backward pass have in common.
template <typename T>
struct Problem {
  using A = typename Wide<T>::type;

  const Kind kind;
  const at::Tensor x;
  const bool own_var;  // a B takes the variance of the batch itself, which ties its samples together
  const int64_t batch, channels, plane_size;
  const int64_t groups;  // one per statistic of a sample: in the B series one per channel
  const int64_t group_channels;
  const int number_of_sums, number_of_coefficients;
  const at::MemoryFormat format;
  Pass<T> reduce_pass, map_pass;  // one takes the sums, the other writes what follows from them

  // With `by_group` an S needs sums of groups only, not of single channels.
  Problem(const at::Tensor& given, Kind kind_, bool own_var_, int64_t groups_, bool by_group,
          int number_of_sums_, int number_of_coefficients_)
      : kind(kind_),
        x(given),
        own_var(own_var_),
        batch(x.size(0)),
        channels(x.size(1)),
        plane_size(x.size(2) * x.size(3)),
        groups(kind.series_b ? channels : groups_),
        group_channels(groups > 0 ? channels / groups : 0),
        number_of_sums(number_of_sums_),
        number_of_coefficients(number_of_coefficients_),
        format(x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast) {
    TORCH_CHECK(groups > 0 && channels % groups == 0,
                groups, " groups don't divide ", channels, " channels");
    // A 1x1 map has both layouts. It is taken as channels_last, where its vectors are full.
    const bool last = plane_size == 1 || format == at::MemoryFormat::ChannelsLast;
    map_pass = pass_over(channels, plane_size, last);
    // The channels of a group lie side by side: they are joined into one long plane.
    reduce_pass =
        by_group && !last ? pass_over(groups, group_channels * plane_size, last) : map_pass;
  }

  Pass<T> pass_over(int64_t pass_channels, int64_t pass_plane_size, bool last) const {
    Pass<T> pass{};
    const int64_t largest_piece = last ? std::max<int64_t>(65536 / pass_channels, 1) : 16384;
    pass.channels_last = last;
    pass.batch = batch;
    pass.channels = pass_channels;
    pass.plane_size = pass_plane_size;
    pass.pieces = std::max<int64_t>((pass_plane_size + largest_piece - 1) / largest_piece, 1);
    pass.piece_size = (pass_plane_size + pass.pieces - 1) / pass.pieces;
    pass.x = data(x);
    return pass;
  }

  const T* data(const at::Tensor& t) const {
    return reinterpret_cast<const T*>(t.template const_data_ptr<typename TorchType<T>::type>());
  }

  // A tensor like x for the result. With huge pages (madvise) a Mask R-CNN trained 8 % slower.
  at::Tensor output() {
    at::Tensor out = at::empty(x.sizes(), x.options().memory_format(format));
    map_pass.out = reinterpret_cast<T*>(out.template data_ptr<typename TorchType<T>::type>());
    return out;
  }

  // For each slab, prepare() sets the coefficients that `reduce` takes, and finish() sets those that
  // only `map` takes from the sums that `reduce` has left.
  template <typename Prepare, typename Finish>
  void run(Prepare prepare, Kernel<T> reduce, Finish finish, Kernel<T> map) const {
    const int64_t slab_groups = SLAB_VALUES / std::max<int64_t>(group_channels * plane_size, 1);
    const int64_t slab_channels = group_channels * std::clamp<int64_t>(slab_groups, 1, groups);
    const int64_t slabs_per_sample = (channels + slab_channels - 1) / slab_channels;
    // Where the variance is of the batch, a slab has all samples.
    const int64_t slabs = own_var ? slabs_per_sample : batch * slabs_per_sample;
    const auto slab = [&](int64_t k) {
      const int64_t n = own_var ? 0 : k / slabs_per_sample, c = k % slabs_per_sample * slab_channels;
      return Slab{n, own_var ? batch : n + 1, c, std::min(c + slab_channels, channels)};
    };
    const auto in_parallel = [&](int64_t items, auto f) {
      const int64_t values = std::max<int64_t>(batch * channels * plane_size, 1);
      at::parallel_for(0, items, std::max<int64_t>(GRAIN * items / values, 1), f);
    };
    // The samples of a slab lie far apart, and are too much to stay in the cache.
    const int64_t bytes = plane_size * sizeof(T);
    const bool scattered = own_var && bytes < 4096 && batch * slab_channels * bytes > CACHE;
    if (!map_pass.channels_last && !scattered && slabs >= 2 * at::get_num_threads()) {
      // Slab after slab, as what `reduce` has just read is still in the cache for `map`.
      in_parallel(slabs, [&](int64_t begin, int64_t end) {
        Work<T> work(*this, (own_var ? batch : 1) * slab_channels);
        Pass<T> reduce_slab = reduce_pass, map_slab = map_pass;
        // The next slab is loaded into the cache while this one is worked on. That
        // makes 7x7 maps faster by a quarter; what is small is there already.
        if (int64_t(x.nbytes()) > 8 * CACHE) {
          reduce_slab.out = map_pass.out;
          map_slab.ahead = slab_channels * plane_size;
        }
        for (int64_t k = begin; k < end; k++) {
          const Slab s = work.held = slab(k);
          prepare(work, s);
          for (int64_t n = s.n_begin; n < s.n_end; n++) work.run(reduce, reduce_slab, n);
          finish(work, s);
          for (int64_t n = s.n_begin; n < s.n_end; n++) work.run(map, map_slab, n);
        }
      });
      return;
    }
    // Else `reduce` goes through the whole tensor, then `map` does.
    Work<T> work(*this, batch * channels);
    work.held = {0, batch, 0, channels};
    const auto on_slabs = [&](auto f) {
      in_parallel(slabs, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; k++) f(work, slab(k));
      });
    };
    const auto on_all = [&](Kernel<T> kernel, const Pass<T>& pass) {
      const Pass<T> all = work.completed(pass, 0);
      in_parallel((pass.channels_last ? batch : batch * pass.channels) * pass.pieces,
                  [&](int64_t begin, int64_t end) { kernel(all, begin, end - begin); });
    };
    on_slabs(prepare);
    on_all(reduce, reduce_pass);
    on_slabs(finish);
    on_all(map, map_pass);
  }
};

// The sums and coefficients of the planes of one slab, which is `held`. Plane i is the i-th of its
// planes.
template <typename T>
class Work {
 public:
  using A = typename Wide<T>::type;

  Slab held{};

  Work(const Problem<T>& problem, int64_t planes)
      : problem_(problem),
        planes_(planes),
        sums_(new double[planes / joined(problem.reduce_pass) * problem.reduce_pass.pieces *
                         problem.number_of_sums]),
        coefficients_(new A[planes * problem.number_of_coefficients]) {}

  A* coefficient(int k) { return coefficients_.get() + k * planes_; }

  // The denominator of the B series: max(floor, v * x + s), max(floor, (x + 1) * s) or
  // max(floor, s - x).
  void set_denominator(int64_t i, A v, A s, A floor) {
    const char variant = problem_.kind.variant;
    coefficient(SeriesB::SLOPE)[i] = variant == '0' ? v : variant == '1' ? s : A(-1);
    // With a NaN for a floor the line is NaN too, as a kernel gives the line where one of both is NaN.
    coefficient(SeriesB::RISE)[i] = std::isnan(floor) ? floor : s;
    coefficient(SeriesB::FLOOR)[i] = floor;
  }

  // Calls f(i, n, c) for each plane of `slab`, which is a part of the slab that is held.
  template <typename F>
  void each_plane(const Slab& slab, F f) const {
    for (int64_t n = slab.n_begin; n < slab.n_end; n++) {
      const int64_t first = planes_before(n) - held.c_begin;
      for (int64_t c = slab.c_begin; c < slab.c_end; c++) f(first + c, n, c);
    }
  }

  // Calls f(at, group) for each group of a slab of one sample: the group's planes, and where its
  // statistics are among those of all groups of all samples.
  template <typename F>
  void each_group(const Slab& slab, F f) const {
    const int64_t n = slab.n_begin;
    for (int64_t c = slab.c_begin; c < slab.c_end; c += problem_.group_channels) {
      f(n * problem_.groups + c / problem_.group_channels,
        Slab{n, slab.n_end, c, c + problem_.group_channels});
    }
  }

  // `pass` with the places of its sums and coefficients, for sample n.
  Pass<T> completed(Pass<T> pass, int64_t n) {
    pass.first_plane = n * pass.channels + (held.c_begin - planes_before(n)) / joined(pass);
    pass.sums = sums_.get();
    for (int k = 0; k < problem_.number_of_coefficients; k++) pass.coefficients[k] = coefficient(k);
    return pass;
  }

  // Runs a kernel over the planes that are held of sample n.
  void run(Kernel<T> kernel, const Pass<T>& pass, int64_t n) {
    kernel(completed(pass, n), (n * pass.channels + held.c_begin / joined(pass)) * pass.pieces,
           held.channels() / joined(pass) * pass.pieces);
  }

  Moments moments_of_plane(int64_t i) const {
    const Pass<T>& pass = problem_.reduce_pass;
    const double* sums = sums_.get() + i * pass.pieces * MOMENTS;
    double mean = sums[0], squares = sums[1];
    for (int64_t piece = 1, count = pass.piece_size; piece < pass.pieces; piece++) {
      sums += MOMENTS;
      const int64_t more = std::min(pass.piece_size, pass.plane_size - piece * pass.piece_size);
      const double delta = sums[0] - mean, share = double(more) / (count + more);
      mean += delta * share;
      squares += sums[1] + delta * delta * count * share;
      count += more;
    }
    return {mean, squares / pass.plane_size};
  }

  Moments moments_of_group(const Slab& group) const {
    const int64_t together = joined(problem_.reduce_pass);
    const int64_t count = problem_.group_channels / together;
    const int64_t first = (planes_before(group.n_begin) + group.c_begin - held.c_begin) / together;
    if (count == 1) return moments_of_plane(first);
    Moments total;  // the planes all have the same size, so a mean over them is enough
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
    const Pass<T>& pass = problem_.reduce_pass;
    const double* sums = sums_.get() + i * pass.pieces * number;
    for (int64_t piece = 0; piece < pass.pieces; piece++, sums += number) {
      for (int k = 0; k < number; k++) total[k] += sums[k];
    }
    return total;
  }

 private:
  // How many channels the pass joins into one long plane.
  int64_t joined(const Pass<T>& pass) const { return problem_.channels / pass.channels; }

  int64_t planes_before(int64_t n) const { return (n - held.n_begin) * held.channels(); }

  const Problem<T>& problem_;
  int64_t planes_;
  std::unique_ptr<double[]> sums_;
  std::unique_ptr<A[]> coefficients_;
};

}  // namespace evonorm
