//! Keys and signatures of other makers, for tests: OpenSSL, and cosign.

/// Made with OpenSSL, over the payload of `Digest::of(b"x")`, as are those that follow.
pub(super) const RSA_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtVod5RVO0XqFpOeuELSA\n\
zYgsaKEuzASmaJsNh7iHS0zFfdep1CpPlq45pbe26RgKPBWucPUv8dV3H5Eo61RW\n\
xl4IMR0xXTP2VcnmJPK+rNXzjvnI1KQXpru2bSRGrBS02JNJ1PC1HfvAW6l7gkG2\n\
eUEowsUUh1AQCve8u7C/JtD32CpDtT2KEvVp0MyPhmn/wpg5T85LeK4cR6XhY5ob\n\
W6c5jx3SUjKSPi8zV5f2xZD1Aablu8Sq+biWstVxqNuwZS92rLN0S2ig/DLNe2Kb\n\
1Ze10pfRtfgXzSk4rXIS5DNazRcPksFeIvQGt/6CT1mpkMHSzgjU0wm6bycw6DbP\n\
ywIDAQAB\n\
-----END PUBLIC KEY-----\n";
pub(super) const RSA_SIGNATURE: &str = "\
fRpeALn1Z4hLashMY4yCAFciEoruKrIzPyL4S3kNO18uOFJMNbhKapjVA0OYd2PbyiBY7XP/FIcyMuQbdyZbozSPh5K1HY9e5SoR\
aTLlSRApjd9C7772DX0RPvvEABnyt2+avPtjZjgsbMkJ+GBdJqGZpzUsUMIXuteRBvDXSyJoJU+tQ9a/ukHiJyzLspyHD1PPjSwt\
WUJT2kkSo8xoBncv2YDzVOV0NQh4tGxn975Y63fj4hS5Q1uqLDyRlc+fnXa7c3r7y078Ju7S6DMuDCQ9yXl+kZuWkX+m15Is0x2x\
87i/rMZtJCw5TR9GUin5Ux1nlJAELVzfDrjBvZf3dQ==";
pub(super) const P384_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEhYku5KcOHc8xk+7UmK1k2pYXIQqDMaO1\n\
/kK8DPMLegmNeF0t0v5HX0oahXZqtcavB8p5j2888tLyemGG/lmUV6kaJXwmehe1\n\
ItpRiswaG5uE2zEribFrX7+s2l4Uimyb\n\
-----END PUBLIC KEY-----\n";
pub(super) const P384_SHA256_SIGNATURE: &str = "\
MGQCMHyWnHTpMjVE1QaVker/kIutW6HyZFNerZEDqcPqzjc1/mhKTQ+Ze3Yu8t17+F9sYQIwVbTF78gjg7Fjq6girUW/on+U+GuV\
2Iytv4qV3gsN5QPE+i/MiVhquWgcDwSiS13D";
pub(super) const P384_SHA384_SIGNATURE: &str = "\
MGQCMCyxIQoKryCndKe/zb59zDGRDA1bdF/pUaWh8nCbgQ7wuGkxCcH1x7z3Zu9C1a+xogIwASbr5wQKP1MqG02whSxuGZLmO1+v\
qGAciVyUaigbnkjFdassow7QzU8hAV1K3gLD";
pub(super) const ED25519_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MCowBQYDK2VwAyEAsZTyV6tPwRcc4DZ2LtwaHy0ikC8UeQIQ1SCLmvS+6IU=\n\
-----END PUBLIC KEY-----\n";
pub(super) const ED25519_SIGNATURE: &str =
    "P+9ikZbcP/z782ec0w1/OydzH6f8q1e5tpyyNeiDDbA3kVuuPpGdAeRxLjcyNs2mG+U68fSnpG6uMDXfE1ZTDQ==";
/// Of a kind that is not supported.
pub(super) const P521_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBTv9+tUNj7SFnD0iR4+S5iAMdT4/6\n\
F+DOd55ZVjZhbGmvw4x8K8be+7KPw1k83u7Wy7SiIXABXWEiFiIbw9viQgkA6mmM\n\
2kiisPGF4gJHKv+g8gxpipjZBpNRET5oNzy2/np7upClfhg3ClCjy6TRh2UBOPMU\n\
Q9RwAMEsnu7cwGe7Fe4=\n\
-----END PUBLIC KEY-----\n";
pub(super) const RSA_1024_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCuset/G8ILIRIdk0MIe36XGS32\n\
lwpMETge5IAaDIow6V/SuI8CtS00CQ7kTuaRPi9FftUuU/Ok2Qu/PtVt9yiz+7vu\n\
b1JtJA+r0Nbyz7dc/83Hwsh9JjZ4PCAwN20ja7sXQYzycUccCYduy5BgHthplwiI\n\
U0HYo9fybO82u3WpuQIDAQAB\n\
-----END PUBLIC KEY-----\n";

/// A released image of Dangerzone, signed with cosign and its project's key: key, signature and digests as its developers printed
/// them in an article on how they sign (February 2026). The payload has the digest that the signature manifest names for it.
pub(super) const COSIGN_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3CUlnwh825Z5wQAJV6TekEi6bCK2\n\
YvAg7A+aeerM5hvc4CCCJFBae5AjnsjGHv4V/3xzssck6e51W+b0jU4qVw==\n\
-----END PUBLIC KEY-----\n";
pub(super) const COSIGN_IMAGE: &str =
    "sha256:7396780b5862cf8b37527854a2a2331e5c746b6a71aa1f424258c3bfaf3a1bd7";
pub(super) const COSIGN_PAYLOAD_DIGEST: &str =
    "sha256:88b8a2ac5b829f47bd25a5a4d9c2ccb0fccff7f53a17477b6d9b5680436aa80f";
pub(super) const COSIGN_SIGNATURE: &str =
    "MEQCIAQScnT03MVfmxjYyW5qAmvQ6TSoukPuw0HmSVlMBwYEAiAzGb76cvDb4CHJ+H6tD00bW1Sh1CK6opaRmI2ist4p2A==";
