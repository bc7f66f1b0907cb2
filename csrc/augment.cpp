// All views of a batch: uint8 pictures of any sizes and what was drawn for each view in, normalised channels-last views out. The
// equations are those at the head of kernels/augment.py; dogo_fast/views/reference.py is the same in plain tensors.
//
// There is no gradient and nothing is saved. A view lives in the buffers of its thread while it is made, three planes of
// floats; memory does not grow with the batch: 4 · (6 S² + H S + W) bytes a thread, H × W the largest sides of a crop, for
// views of S × S.
// A crop that is not turned is scaled along one axis after the other, with weights made once a view; the adjustments are
// plain loops over a plane, which the compiler vectorises.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "buffer.h"

namespace dogo_fast {
namespace {

using at::Tensor;

constexpr int64_t kDraws = 17;
constexpr float kRed = 0.2989f, kGreen = 0.587f, kBlue = 0.114f;

// What describes a view, in the order of dogo_fast.views.ViewDraws.
struct Draws {
  explicit Draws(const float* p)
      : top(static_cast<int64_t>(p[0])), left(static_cast<int64_t>(p[1])), height(static_cast<int64_t>(p[2])),
        width(static_cast<int64_t>(p[3])), flipped(p[4] > 0), angle(p[5]), places(p + 6), factors(p + 10), grey(p[14] > 0),
        deviation(p[15]), solarised(p[16] > 0) {}

  int64_t top, left, height, width;
  bool flipped;
  float angle;
  const float* places;   // of brightness, contrast, saturation, hue: their turns, 0 to 3; 4 for none
  const float* factors;  // of the same
  bool grey;
  float deviation;
  bool solarised;
};

// Sizes that all views share, in pixels; of the crops the largest.
struct Shape {
  int64_t height, width, size, blur;
  int64_t pixels() const { return size * size; }
};

// Where a picture begins among the bytes, and its sides: a row of places.
struct Picture {
  explicit Picture(const uint8_t* bytes, const int64_t* place) : red(bytes + place[0]), height(place[1]), width(place[2]) {}

  const uint8_t* red;
  int64_t height, width;
};

inline float clamp(float x) { return std::min(std::max(x, 0.0f), 1.0f); }

// The pixels of a crop that a sample at `centre` reads along an axis, [start, stop), and their weights before division
// by their sum: t((k + 1/2 - centre) / support).
struct Taps {
  Taps(float centre, float extent, float support) : centre(centre), support(support) {
    start = static_cast<int64_t>(std::max(std::floor(centre - support + 0.5f), 0.0f));
    stop = static_cast<int64_t>(std::min(std::floor(centre + support + 0.5f), extent));
  }
  float weight(int64_t k) const {
    return std::max(1.0f - std::abs(static_cast<float>(k) + 0.5f - centre) / support, 0.0f);
  }

  float centre, support;
  int64_t start, stop;
};

inline float keep_within(float centre, float extent) { return std::min(std::max(centre, 0.5f), extent - 0.5f); }

// The taps of every pixel of an axis, for a crop that is not turned: as many for each, some of weight 0.
struct Axis {
  Axis(int64_t crop, int64_t size, bool flipped) : size(size) {
    const auto extent = static_cast<float>(crop), pixels = static_cast<float>(size);
    const float support = std::max(extent / pixels, 1.0f);
    count = static_cast<int64_t>(std::ceil(2 * support));
    indices.resize(count * size);
    weights.resize(count * size);
    for (int64_t i = 0; i < size; ++i) {
      const auto place = static_cast<float>(flipped ? size - 1 - i : i) + 0.5f - pixels / 2;
      const Taps taps(keep_within((place / pixels + 0.5f) * extent, extent), extent, support);
      float sum = 0;
      for (int64_t k = taps.start; k < taps.stop; ++k) {
        sum += taps.weight(k);
      }
      for (int64_t tap = 0; tap < count; ++tap) {
        const int64_t k = taps.start + tap;
        indices[tap * size + i] = static_cast<int32_t>(std::min(k, crop - 1));
        weights[tap * size + i] = k < taps.stop ? taps.weight(k) / sum : 0.0f;
      }
    }
  }

  int64_t size, count;
  std::vector<int32_t> indices;  // of the first tap of every pixel, then of the second, ...
  std::vector<float> weights;
};

// One thread's buffers, and the changes that are made to the view in them.
class View {
 public:
  explicit View(const Shape& shape)
      : shape_(shape), planes_(3 * shape.pixels()), other_(3 * shape.pixels()), rows_(shape.height * shape.size),
        line_(shape.width) {}

  void make(const Picture& picture, const Draws& draws) {
    if (draws.angle == 0) {
      crop(picture, draws);
    } else {
      crop_turned(picture, draws);
    }
    for (int64_t turn = 0; turn < 4; ++turn) {
      for (int64_t number = 0; number < 4; ++number) {
        const bool changes = draws.factors[number] != (number == 3 ? 0.0f : 1.0f);
        if (changes && draws.places[number] == static_cast<float>(turn)) {
          adjust(number, draws.factors[number]);
        }
      }
    }
    if (draws.grey) {
      make_grey();
    }
    if (shape_.blur > 0 && draws.deviation > 0) {
      blur(draws.deviation);
    }
    if (draws.solarised) {
      solarise();
    }
  }

  template <typename Out>
  void write(Out* out, at::ArrayRef<double> scale, at::ArrayRef<double> shift) const {
    for (int64_t channel = 0; channel < 3; ++channel) {
      const float* plane = this->plane(channel);
      const auto factor = static_cast<float>(scale[channel]), offset = static_cast<float>(shift[channel]);
#pragma omp simd
      for (int64_t i = 0; i < shape_.pixels(); ++i) {
        out[3 * i + channel] = static_cast<Out>(plane[i] * factor + offset);
      }
    }
  }

 private:
  float* plane(int64_t channel) const { return planes_.data() + channel * shape_.pixels(); }

  // Columns first, into as many rows as the crop has; then rows.
  void crop(const Picture& picture, const Draws& draws) {
    const int64_t size = shape_.size;
    const Axis y(draws.height, size, false), x(draws.width, size, draws.flipped);
    for (int64_t channel = 0; channel < 3; ++channel) {
      const uint8_t* corner = picture.red + (channel * picture.height + draws.top) * picture.width + draws.left;
      for (int64_t row = 0; row < draws.height; ++row) {
        scale_row(corner + row * picture.width, draws.width, x, rows_.data() + row * size);
      }
      for (int64_t i = 0; i < size; ++i) {
        float* out = plane(channel) + i * size;
        std::fill_n(out, size, 0.0f);
        for (int64_t tap = 0; tap < y.count; ++tap) {
          const float weight = y.weights[tap * size + i];
          const float* row = rows_.data() + y.indices[tap * size + i] * size;
#pragma omp simd
          for (int64_t j = 0; j < size; ++j) {
            out[j] += weight * row[j];
          }
        }
      }
    }
  }

  // Along x, to [0, 1].
  void scale_row(const uint8_t* pixels, int64_t width, const Axis& x, float* out) const {
    float* line = line_.data();
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      line[j] = static_cast<float>(pixels[j]) * (1.0f / 255);
    }
    std::fill_n(out, x.size, 0.0f);
    for (int64_t tap = 0; tap < x.count; ++tap) {
      const int32_t* index = x.indices.data() + tap * x.size;
      const float* weight = x.weights.data() + tap * x.size;
#pragma omp simd
      for (int64_t j = 0; j < x.size; ++j) {
        out[j] += weight[j] * line[index[j]];
      }
    }
  }

  void crop_turned(const Picture& picture, const Draws& draws) {
    const auto size = static_cast<float>(shape_.size);
    const auto height = static_cast<float>(draws.height), width = static_cast<float>(draws.width);
    const float cosine = std::cos(draws.angle), sine = std::sin(draws.angle);
    const float support_y = std::max(height / size, 1.0f), support_x = std::max(width / size, 1.0f);
    const uint8_t* corner = picture.red + draws.top * picture.width + draws.left;
    const int64_t plane_bytes = picture.height * picture.width;
    for (int64_t i = 0; i < shape_.pixels(); ++i) {
      const float y = static_cast<float>(i / shape_.size) + 0.5f - size / 2;
      const int64_t column = i % shape_.size;
      const float x = static_cast<float>(draws.flipped ? shape_.size - 1 - column : column) + 0.5f - size / 2;
      const Taps rows(keep_within(((y * cosine + x * sine) / size + 0.5f) * height, height), height, support_y);
      const Taps columns(keep_within(((x * cosine - y * sine) / size + 0.5f) * width, width), width, support_x);
      float sums[4] = {0, 0, 0, 0};
      for (int64_t k = rows.start; k < rows.stop; ++k) {
        for (int64_t l = columns.start; l < columns.stop; ++l) {
          const float weight = rows.weight(k) * columns.weight(l);
          const uint8_t* pixel = corner + k * picture.width + l;
          for (int64_t channel = 0; channel < 3; ++channel) {
            sums[channel] += weight * static_cast<float>(pixel[channel * plane_bytes]);
          }
          sums[3] += weight;
        }
      }
      for (int64_t channel = 0; channel < 3; ++channel) {
        plane(channel)[i] = sums[channel] / (255 * sums[3]);
      }
    }
  }

  void adjust(int64_t number, float factor) {
    if (number == 0) {
      blend(factor, 0.0f);
    } else if (number == 1) {
      blend(factor, (1 - factor) * mean_grey());
    } else if (number == 2) {
      saturate(factor);
    } else {
      turn_hue(factor);
    }
  }

  void blend(float factor, float offset) {
    float* x = planes_.data();
#pragma omp simd
    for (int64_t i = 0; i < 3 * shape_.pixels(); ++i) {
      x[i] = clamp(x[i] * factor + offset);
    }
  }

  float mean_grey() const {
    float sums[3];
    for (int64_t channel = 0; channel < 3; ++channel) {
      const float* x = plane(channel);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < shape_.pixels(); ++i) {
        sum += x[i];
      }
      sums[channel] = sum;
    }
    return (kRed * sums[0] + kGreen * sums[1] + kBlue * sums[2]) / static_cast<float>(shape_.pixels());
  }

  void saturate(float factor) {
    float *red = plane(0), *green = plane(1), *blue = plane(2);
#pragma omp simd
    for (int64_t i = 0; i < shape_.pixels(); ++i) {
      const float offset = (1 - factor) * (kRed * red[i] + kGreen * green[i] + kBlue * blue[i]);
      red[i] = clamp(red[i] * factor + offset);
      green[i] = clamp(green[i] * factor + offset);
      blue[i] = clamp(blue[i] * factor + offset);
    }
  }

  void turn_hue(float shift) {
    float *red = plane(0), *green = plane(1), *blue = plane(2);
#pragma omp simd
    for (int64_t i = 0; i < shape_.pixels(); ++i) {
      const float value = std::max(std::max(red[i], green[i]), blue[i]);
      const float chroma = value - std::min(std::min(red[i], green[i]), blue[i]);
      const float inverse = 1 / (chroma > 0 ? chroma : 1.0f);
      const float of_red = (green[i] - blue[i]) * inverse;
      const float of_green = 2 + (blue[i] - red[i]) * inverse;
      const float of_blue = 4 + (red[i] - green[i]) * inverse;
      float hue = value == green[i] ? of_green : of_blue;
      hue = 6 * shift + (value == red[i] ? of_red : hue);
      const auto channel = [&](float n) {
        float k = n + hue;  // mod 6 by comparisons: from -3 to 13 at the most, and std::floor is not vectorised
        k += k < 0 ? 6.0f : 0.0f;
        k -= k >= 6 ? 6.0f : 0.0f;
        k -= k >= 6 ? 6.0f : 0.0f;
        return value - chroma * clamp(std::min(k, 4 - k));
      };
      red[i] = channel(5);
      green[i] = channel(3);
      blue[i] = channel(1);
    }
  }

  void make_grey() {
    float *red = plane(0), *green = plane(1), *blue = plane(2);
#pragma omp simd
    for (int64_t i = 0; i < shape_.pixels(); ++i) {
      red[i] = green[i] = blue[i] = kRed * red[i] + kGreen * green[i] + kBlue * blue[i];
    }
  }

  // Along rows into the other planes, along columns back.
  void blur(float deviation) {
    const int64_t size = shape_.size, half = shape_.blur / 2;
    std::vector<float> weights(shape_.blur), line(size + 2 * half);
    float sum = 0;
    for (int64_t k = 0; k < shape_.blur; ++k) {
      const float distance = static_cast<float>(k - half) / deviation;
      weights[k] = std::exp(-0.5f * distance * distance);
      sum += weights[k];
    }
    for (float& weight : weights) {
      weight /= sum;
    }
    const auto reflect = [&](int64_t i) { return i < 0 ? -i : i < size ? i : 2 * size - 2 - i; };
    for (int64_t row = 0; row < 3 * size; ++row) {
      for (int64_t i = 0; i < size + 2 * half; ++i) {
        line[i] = planes_[row * size + reflect(i - half)];
      }
      add_weighted(weights, other_.data() + row * size, [&](int64_t k) { return line.data() + k; });
    }
    for (int64_t row = 0; row < 3 * size; ++row) {
      const int64_t first = row / size * size;
      add_weighted(weights, planes_.data() + row * size, [&](int64_t k) {
        return other_.data() + (first + reflect(row - first + k - half)) * size;
      });
    }
  }

  // out[j] = Σ_k weights[k] · source(k)[j]
  template <typename Source>
  void add_weighted(const std::vector<float>& weights, float* out, Source&& source) const {
    std::fill_n(out, shape_.size, 0.0f);
    for (int64_t k = 0; k < shape_.blur; ++k) {
      const float weight = weights[k];
      const float* from = source(k);
#pragma omp simd
      for (int64_t j = 0; j < shape_.size; ++j) {
        out[j] += weight * from[j];
      }
    }
  }

  void solarise() {
    float* x = planes_.data();
#pragma omp simd
    for (int64_t i = 0; i < 3 * shape_.pixels(); ++i) {
      x[i] = x[i] >= 0.5f ? 1 - x[i] : x[i];
    }
  }

  Shape shape_;
  Buffer<float> planes_, other_;
  Buffer<float> rows_;  // of the crop, scaled along x
  Buffer<float> line_;  // a row of the crop
};

// Whether all lies where it may; returns the shape.
Shape check(const Tensor& pixels, const Tensor& places, const Tensor& draws, const Tensor& out, int64_t blur) {
  const int64_t views = draws.size(0), N = places.size(0), size = out.size(2);
  TORCH_CHECK(draws.size(1) == N && draws.size(2) == kDraws, "draws must be [views, N, 17], got ", draws.sizes());
  TORCH_CHECK(places.dim() == 2 && places.size(1) == 3, "places must be [N, 3], got ", places.sizes());
  TORCH_CHECK(
      out.size(0) == views && out.size(1) == N && out.size(3) == size && out.size(4) == 3,
      "out must be [views, N, S, S, 3], got ", out.sizes());
  TORCH_CHECK(blur / 2 < size, "the blur must be narrower than twice the view, got ", blur, " and ", size);
  const int64_t* place = places.const_data_ptr<int64_t>();
  const int64_t bytes = pixels.numel();
  for (int64_t i = 0; i < N; ++i, place += 3) {
    const int64_t begin = place[0], height = place[1], width = place[2];
    TORCH_CHECK_INDEX(
        begin >= 0 && height > 0 && width > 0 && height <= bytes && width <= bytes / height / 3 &&
            begin <= bytes - 3 * height * width,
        "pictures must lie within ", bytes, " bytes, got one of ", height, " x ", width, " from byte ", begin);
  }
  Shape shape{0, 0, size, blur};
  place = places.const_data_ptr<int64_t>();
  const float* numbers = draws.const_data_ptr<float>();
  for (int64_t i = 0; i < views * N; ++i) {
    const Draws d(numbers + i * kDraws);
    TORCH_CHECK_VALUE(
        d.top >= 0 && d.left >= 0 && d.height > 0 && d.width > 0 && d.top + d.height <= place[3 * (i % N) + 1] &&
            d.left + d.width <= place[3 * (i % N) + 2],
        "draws must have crops within the picture, got top ", d.top, ", left ", d.left, ", height ", d.height, ", width ",
        d.width);
    shape.height = std::max(shape.height, d.height);
    shape.width = std::max(shape.width, d.width);
  }
  return shape;
}

}  // namespace

// pixels uint8 [bytes], places int64 [N, 3], draws float [views, N, 17], out [views, N, S, S, 3]; all contiguous.
void augment(
    const Tensor& pixels, const Tensor& places, const Tensor& draws, const Tensor& out, int64_t blur,
    at::ArrayRef<double> scale, at::ArrayRef<double> shift) {
  const Shape shape = check(pixels, places, draws, out, blur);
  const uint8_t* bytes = pixels.const_data_ptr<uint8_t>();
  const int64_t* place = places.const_data_ptr<int64_t>();
  const float* numbers = draws.const_data_ptr<float>();
  const int64_t N = places.size(0);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "dogo_fast augment", [&] {
    scalar_t* views = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, draws.size(0) * N, 1, [&](int64_t start, int64_t stop) {
      View view(shape);
      for (int64_t i = start; i < stop; ++i) {
        view.make(Picture(bytes, place + 3 * (i % N)), Draws(numbers + i * kDraws));
        view.write(views + i * 3 * shape.pixels(), scale, shift);
      }
    });
  });
}

}  // namespace dogo_fast
