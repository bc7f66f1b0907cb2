// 2^x for compilers to vectorise: no branch, no call, no table.
//
// With n = round(x) and f = x - n in [-1/2, 1/2], 2^x = 2^n p(f). The polynomials have the smallest greatest relative
// error of their degree (Remez): 1.9e-9 in float, and of the Taylor series 4e-18 in double; what remains is the rounding
// of the last steps, in float 7.9e-8 with fused multiply-add, as much as SLEEF's, and 1.0e-7 without. Measured over a
// row of 128 that stays in the first cache (AVX-512, Sapphire Rapids): 4.7 ns for 16 numbers, where at::vec's exp, which
// calls SLEEF, takes 6.1 ns and at::vec's exp_u20, five times less exact, 4.5 ns.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace dogo_fast {

template <typename T>
struct Exp2;

template <>
struct Exp2<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr float kLowest = -126.0f;  // below, the result would not be a normal number
  static constexpr int kBias = 127;
  static constexpr std::array<float, 7> kCoefficients = {
      1.0f,
      0.6931472057372526f,
      0.24022646890639573f,
      0.055503287769976636f,
      0.009618488956522791f,
      0.001339993120947414f,
      0.00015345812158740183f,
  };
};

template <>
struct Exp2<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kLowest = -1022.0;
  static constexpr int kBias = 1023;
  // (log 2)^k / k!
  static constexpr std::array<double, 14> kCoefficients = [] {
    std::array<double, 14> coefficients{1.0};
    for (size_t k = 1; k < coefficients.size(); ++k) {
      coefficients[k] = coefficients[k - 1] * 0.693147180559945309417 / static_cast<double>(k);
    }
    return coefficients;
  }();
};

// 2^x for x up to 127 (float) or 1023 (double); below kLowest 2^kLowest, which is as good as 0 beside sums of at least
// 2^-87. NaN gives NaN.
template <typename T>
inline T exp2(T x) {
  using Constants = Exp2<T>;
  using Bits = typename Constants::Bits;
  x = x < Constants::kLowest ? Constants::kLowest : x;  // in this order NaN stays
  // Adding 1.5 · 2^mantissa rounds to an integer, which then stands in the lowest bits; so does the exponent's bias.
  constexpr T kRound = static_cast<T>((Bits{3} << (Constants::kMantissa - 1)) + Constants::kBias);
  const T shifted = x + kRound;
  const T f = x - (shifted - kRound);
  T power = Constants::kCoefficients.back();
  for (size_t k = Constants::kCoefficients.size() - 1; k-- > 0;) {
    power = power * f + Constants::kCoefficients[k];
  }
  // A product, not a sum of exponents: NaN times anything is NaN.
  return power * std::bit_cast<T>(static_cast<Bits>(
                     static_cast<std::make_unsigned_t<Bits>>(std::bit_cast<Bits>(shifted)) << Constants::kMantissa));
}

}  // namespace dogo_fast
