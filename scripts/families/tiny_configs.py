"""Configurations of families as they stand on the hub, with sizes so small that a checkpoint takes a megabyte."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_COMMON: Config = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512, "initializer_range": 0.02,
    "use_cache": True, "rms_norm_eps": 1e-05, "torch_dtype": "bfloat16", "transformers_version": "4.57.1",
    "intermediate_size": 128, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False
}  # yapf: disable


def _of(model_type: str, architecture: str, *left_out: str, **own: Any) -> Config:
  made = _COMMON | {"model_type": model_type, "architectures": [architecture]} | own
  return {key: value for key, value in made.items() if key not in left_out}


_LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    "rope_type": "llama3"
}  # yapf: disable
_EXPERTS: Config = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GROUPED = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5}
_MLA = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4
}
_INDEXER = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 512}
_EVERY_FOURTH = ["sliding_attention"] * 3 + ["full_attention"]

CONFIGS: dict[str, Config] = {
    "llama3": _of("llama", "LlamaForCausalLM", rope_scaling=_LLAMA3_ROPE, mlp_bias=False, attention_bias=False),
    "llama_old": _of("llama", "LlamaForCausalLM", "rope_theta", "hidden_act", pretraining_tp=1, rope_scaling=None),
    "mistral_window": _of("mistral", "MistralForCausalLM", sliding_window=16, head_dim=16),
    "ministral": _of("ministral", "MinistralForCausalLM", sliding_window=16, head_dim=16, layer_types=_EVERY_FOURTH),
    "qwen2_5": _of("qwen2", "Qwen2ForCausalLM", max_window_layers=2, sliding_window=16, use_sliding_window=False),
    "qwen2_window": _of("qwen2", "Qwen2ForCausalLM", max_window_layers=2, sliding_window=16, use_sliding_window=True),
    "qwen3": _of(
        "qwen3",
        "Qwen3ForCausalLM",
        attention_bias=False,
        head_dim=32,
        max_window_layers=4,
        sliding_window=None,
        use_sliding_window=False,
        tie_word_embeddings=True,
        rope_scaling=None
    ),
    "qwen3_yarn": _of(
        "qwen3",
        "Qwen3ForCausalLM",
        attention_bias=False,
        head_dim=32,
        use_sliding_window=False,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    ),
    "gemma": _of(
        "gemma",
        "GemmaForCausalLM",
        "tie_word_embeddings",
        head_dim=16,
        hidden_act="gelu",
        hidden_activation="gelu_pytorch_tanh"
    ),
    "gemma2": _of(
        "gemma2",
        "Gemma2ForCausalLM",
        "tie_word_embeddings",
        head_dim=16,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        cache_implementation="hybrid"
    ),
    "gemma3_1b": _of(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "tie_word_embeddings",
        "hidden_act",
        num_hidden_layers=7,
        head_dim=16,
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=16,
        sliding_window_pattern=6,
        query_pre_attn_scalar=16,
        rope_local_base_freq=10000,
        rope_theta=1000000,
        attn_logit_softcapping=None,
        final_logit_softcapping=None
    ),
    "seed_oss": _of(
        "seed_oss",
        "SeedOssForCausalLM",
        head_dim=16,
        attention_bias=True,
        attention_out_bias=False,
        mlp_bias=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        rope_scaling={"rope_type": "default"}
    ),
    "olmo": _of("olmo", "OlmoForCausalLM", "rms_norm_eps", clip_qkv=None),
    "olmo3": _of(
        "olmo3",
        "Olmo3ForCausalLM",
        rope_theta=500000,
        sliding_window=16,
        attention_bias=False,
        layer_types=_EVERY_FOURTH,
        rope_scaling={
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
            "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1
        }
    ),
    "olmoe": _of(
        "olmoe",
        "OlmoeForCausalLM",
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        intermediate_size=32,
        clip_qkv=None
    ),
    "granitemoehybrid": _of(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        intermediate_size=32,
        attention_multiplier=0.0625,
        embedding_multiplier=12.0,
        logits_scaling=0.5,
        residual_multiplier=0.22,
        position_embedding_type="nope",
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_chunk_size=16,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        layer_types=["mamba", "mamba", "attention", "mamba"],
        normalization_function="rmsnorm",
        tie_word_embeddings=True
    ),
    "granite4_dense": _of(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=64,
        intermediate_size=64,
        attention_multiplier=0.0625,
        embedding_multiplier=12.0,
        logits_scaling=0.5,
        residual_multiplier=0.22,
        position_embedding_type="rope",
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_chunk_size=16,
        layer_types=["attention"] * 4,
        tie_word_embeddings=True
    ),
    "exaone4": _of(
        "exaone4",
        "Exaone4ForCausalLM",
        sliding_window=16,
        sliding_window_pattern="LLLG",
        head_dim=16,
        layer_types=_EVERY_FOURTH,
        rope_scaling=_LLAMA3_ROPE
    ),
    "exaone4_small": _of(
        "exaone4",
        "Exaone4ForCausalLM",
        sliding_window=None,
        head_dim=16,
        layer_types=["full_attention"] * 4,
        tie_word_embeddings=True
    ),
    "hunyuan_dense": _of(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        max_position_embeddings=262144,
        head_dim=16,
        attention_head_dim=16,
        use_qk_norm=True,
        tie_word_embeddings=True,
        use_cla=False,
        rope_scaling={
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "type": "dynamic"
        }
    ),
    "hunyuan_moe": _of(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        max_position_embeddings=262144,
        head_dim=16,
        attention_head_dim=16,
        use_qk_norm=True,
        num_experts=8,
        moe_topk=[2] * 4,
        num_shared_expert=[1] * 4,
        moe_intermediate_size=[32] * 4,
        moe_drop_tokens=False,
        moe_layer_num_skipped=0,
        use_mixed_mlp_moe=True,
        norm_topk_prob=True,
        intermediate_size=32,
        rope_scaling={
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0,
            "type": "dynamic"
        }
    ),
    "ernie4_5": _of(
        "ernie4_5", "Ernie4_5ForCausalLM", use_bias=False, head_dim=16, rope_theta=500000, tie_word_embeddings=True
    ),
    "ernie4_5_moe": _of(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        use_bias=False,
        moe_num_experts=8,
        moe_k=2,
        moe_num_shared_experts=2,
        moe_intermediate_size=32,
        moe_layer_start_index=1,
        moe_layer_end_index=3,
        moe_layer_interval=1,
        moe_use_aux_free=True,
        moe_capacity=[8, 8, 8],
        moe_gate="topk",
        rope_theta=500000,
        tie_word_embeddings=True
    ),
    "cohere": _of(
        "cohere",
        "CohereForCausalLM",
        "rms_norm_eps",
        "tie_word_embeddings",
        layer_norm_eps=1e-5,
        logit_scale=2.0,
        use_qk_norm=False,
        attention_bias=False
    ),
    "cohere2": _of(
        "cohere2",
        "Cohere2ForCausalLM",
        "rms_norm_eps",
        "tie_word_embeddings",
        layer_norm_eps=1e-5,
        logit_scale=2.0,
        head_dim=16,
        sliding_window=16,
        sliding_window_pattern=4,
        attention_bias=False,
        layer_switch=4,
        position_embedding_type="rope_gptj",
        rotary_pct=1.0,
        use_embedding_sharing=True,
        order_of_interleaved_layers="local_attn_first",
        cache_implementation="hybrid"
    ),
    "starcoder2": _of(
        "starcoder2",
        "Starcoder2ForCausalLM",
        "rms_norm_eps",
        "tie_word_embeddings",
        norm_epsilon=1e-5,
        sliding_window=16,
        use_bias=True,
        hidden_act="gelu_pytorch_tanh",
        norm_type="layer_norm",
        mlp_type="default"
    ),
    "phi2": _of(
        "phi",
        "PhiForCausalLM",
        "rms_norm_eps",
        layer_norm_eps=1e-5,
        intermediate_size=256,
        num_key_value_heads=4,
        hidden_act="gelu_new",
        partial_rotary_factor=0.5,
        qk_layernorm=False,
        rope_scaling=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0
    ),
    "phimoe": _of(
        "phimoe",
        "PhiMoEForCausalLM",
        num_local_experts=8,
        num_experts_per_tok=2,
        intermediate_size=32,
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=512,
        router_jitter_noise=0.01,
        input_jitter_noise=0.01,
        rope_scaling={
            "type": "longrope", "long_factor": [1.0 + 0.1 * i for i in range(8)],
            "short_factor": [1.0 + 0.02 * i for i in range(8)], "long_mscale": 1.243163121016122,
            "short_mscale": 1.243163121016122, "original_max_position_embeddings": 256
        },
        original_max_position_embeddings=256
    ),
    "deepseek_v32": _of(
        "deepseek_v32",
        "DeepseekV32ForCausalLM",
        **_MLA,
        **_INDEXER,
        **_GROUPED,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        attention_bias=False,
        ep_size=1,
        rope_scaling={
            "type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 128
        }
    ),
    "kimi_k2": _of(
        "kimi_k2",
        "DeepseekV3ForCausalLM",
        **_MLA,
        **_GROUPED,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        attention_bias=False,
        ep_size=1,
        aux_loss_alpha=0.001,
        auto_map={
            "AutoConfig": "configuration_deepseek.DeepseekV3Config",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"
        },
        rope_scaling={
            "type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 128
        }
    ),
    "glm_moe_dsa": _of(
        "glm_moe_dsa",
        "GlmMoeDsaForCausalLM",
        **_MLA,
        **_INDEXER,
        **_GROUPED,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        attention_bias=False,
        head_dim=8,
        qk_head_dim=24,
        num_nextn_predict_layers=0,
        rope_parameters={"rope_theta": 1000000, "rope_type": "default"},
        rope_interleave=True
    ),
    "minimax_m2": _of(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        intermediate_size=32,
        rotary_dim=16,
        scoring_func="sigmoid",
        use_qk_norm=True,
        qk_norm_type="per_layer",
        use_routing_bias=True,
        attn_type_list=[1] * 4,
        num_mtp_modules=3,
        mtp_transformer_layers=1,
        use_mtp=True,
        shared_intermediate_size=0,
        rope_theta=5000000,
        auto_map={
            "AutoConfig": "configuration_minimax_m2.MiniMaxM2Config",
            "AutoModelForCausalLM": "modeling_minimax_m2.MiniMaxM2ForCausalLM"
        }
    ),
    "lfm2_moe": _of(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        "rms_norm_eps",
        "tie_word_embeddings",
        norm_eps=1e-5,
        conv_L_cache=3,
        conv_bias=False,
        num_dense_layers=1,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        use_expert_bias=True,
        layer_types=["conv", "conv", "full_attention", "conv"]
    ),
    "kimi_linear": _of(
        "kimi_linear",
        "KimiLinearForCausalLM",
        num_key_value_heads=4,
        head_dim=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        q_lora_rank=None,
        mla_use_nope=True,
        linear_attn_config={
            "full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 16, "num_heads": 4,
            "short_conv_kernel_size": 4
        },
        num_experts=8,
        num_experts_per_token=2,
        num_shared_experts=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        moe_renormalize=True,
        moe_router_activation_func="sigmoid",
        num_expert_group=1,
        topk_group=1,
        routed_scaling_factor=2.446,
        use_grouped_topk=True,
        rope_scaling=None,
        num_nextn_predict_layers=0,
        auto_map={
            "AutoConfig": "configuration_kimi.KimiLinearConfig",
            "AutoModelForCausalLM": "modeling_kimi.KimiLinearForCausalLM"
        }
    ),
    "nemotron_h": _of(
        "nemotron_h",
        "NemotronHForCausalLM",
        "rms_norm_eps",
        "hidden_act",
        hybrid_override_pattern="M-M*",
        layer_norm_epsilon=1e-5,
        head_dim=16,
        attention_head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=16,
        conv_kernel=4,
        chunk_size=16,
        mlp_hidden_act="relu2",
        mamba_hidden_act="silu",
        use_conv_bias=True,
        use_bias=False,
        mlp_bias=False,
        attention_bias=False,
        mamba_proj_bias=False,
        time_step_limit=[0.0, float("inf")],
        residual_in_fp32=False,
        expand=2
    ),
    "nemotron_h_moe": _of(
        "nemotron_h",
        "NemotronHForCausalLM",
        "rms_norm_eps",
        "hidden_act",
        hybrid_override_pattern="MEM*E",
        num_hidden_layers=5,
        layer_norm_epsilon=1e-5,
        norm_eps=1e-5,
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=16,
        conv_kernel=4,
        chunk_size=16,
        mlp_hidden_act="relu2",
        mamba_hidden_act="silu",
        use_conv_bias=True,
        use_bias=False,
        mlp_bias=False,
        attention_bias=False,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=64,
        **_GROUPED,
        time_step_min=0.001,
        time_step_max=0.1
    ),
    "falcon_h1": _of(
        "falcon_h1",
        "FalconH1ForCausalLM",
        head_dim=16,
        mamba_d_ssm=128,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_chunk_size=16,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        mamba_norm_before_gate=False,
        mamba_rms_norm=False,
        attention_in_multiplier=1.0,
        attention_out_multiplier=0.9375,
        key_multiplier=0.39,
        lm_head_multiplier=1.95,
        embedding_multiplier=5.6,
        mlp_multipliers=[0.88, 0.59],
        ssm_in_multiplier=1.25,
        ssm_out_multiplier=0.23,
        ssm_multipliers=[0.35, 0.25, 0.35, 0.5, 0.35],
        projectors_bias=False,
        attention_bias=False,
        rope_theta=100000000000.0
    ),
    "mamba2": _of(
        "mamba2",
        "Mamba2ForCausalLM",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "intermediate_size",
        num_heads=8,
        head_dim=16,
        state_size=16,
        n_groups=1,
        conv_kernel=4,
        expand=2,
        chunk_size=16,
        use_conv_bias=True,
        use_bias=False,
        layer_norm_epsilon=1e-5,
        time_step_limit=[0.0, float("inf")],
        time_step_rank=4,
        rms_norm=True,
        residual_in_fp32=True,
        norm_before_gate=False
    ),
    "mamba": _of(
        "mamba",
        "MambaForCausalLM",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        state_size=16,
        conv_kernel=4,
        expand=2,
        intermediate_size=128,
        use_conv_bias=True,
        use_bias=False,
        layer_norm_epsilon=1e-5,
        time_step_rank=4,
        residual_in_fp32=True,
        tie_word_embeddings=True
    ),
    "apertus": _of("apertus", "ApertusForCausalLM", hidden_act="xielu", qk_norm=True, rope_scaling=_LLAMA3_ROPE),
    "arcee": _of("arcee", "ArceeForCausalLM", hidden_act="relu2", head_dim=16),
    "dots1": _of(
        "dots1",
        "Dots1ForCausalLM",
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        scoring_func="sigmoid",
        **_GROUPED,
        head_dim=16,
        attention_bias=False
    ),
    "bitnet": _of("bitnet", "BitNetForCausalLM", hidden_act="relu2", tie_word_embeddings=True),
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 320, "n_embd": 64, "n_layer": 4,
        "n_head": 4, "n_positions": 512, "n_ctx": 512, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "bos_token_id": 1, "eos_token_id": 2
    },
    "gpt_neox": _of(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "rms_norm_eps",
        "rope_theta",
        layer_norm_eps=1e-5,
        rotary_pct=0.25,
        rotary_emb_base=10000,
        use_parallel_residual=True,
        hidden_act="gelu",
        intermediate_size=256
    ),
    "stablelm": _of(
        "stablelm",
        "StableLmForCausalLM",
        "rms_norm_eps",
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.25,
        use_qkv_bias=True,
        use_parallel_residual=False
    ),
    "jamba": _of(
        "jamba",
        "JambaForCausalLM",
        num_experts=2,
        num_experts_per_tok=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=4,
        attn_layer_offset=2,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=8,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        use_mamba_kernels=False
    ),
    "helium": _of("helium", "HeliumForCausalLM", head_dim=16),
    "glm": _of("glm", "GlmForCausalLM", head_dim=16, partial_rotary_factor=0.5, attention_bias=True),
    "glm4_5_air_v": {
        "model_type": "glm4v_moe", "architectures": ["Glm4vMoeForConditionalGeneration"], "image_token_id": 310,
        "text_config": _of(
            "glm4v_moe_text",
            "",
            "architectures",
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            **_GROUPED,
            head_dim=16,
            partial_rotary_factor=0.5,
            attention_bias=True,
            use_qk_norm=False,
            rope_scaling={"rope_type": "default", "mrope_section": [2, 1, 1]}
        ), "vision_config": {
            "hidden_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 16,
            "patch_size": 8, "image_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 1
        }
    },
    "qwen2_vl": {
        **_of(
            "qwen2_vl",
            "Qwen2VLForConditionalGeneration",
            rope_scaling={"type": "mrope", "mrope_section": [4, 2, 2]},
            sliding_window=16,
            use_sliding_window=False,
            max_window_layers=4
        ), "image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312, "vision_end_token_id": 313,
        "vision_token_id": 314, "vision_config": {
            "depth": 1, "embed_dim": 16, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 1, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 1, "in_chans": 3
        }
    },
    "mistral3_hub": {
        "model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 310,
        "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
        "vision_feature_layer": -1, "torch_dtype": "bfloat16", "transformers_version": "4.50.0", "text_config": {
            "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 96,
            "max_position_embeddings": 512, "model_type": "mistral", "num_attention_heads": 32, "rms_norm_eps": 1e-05,
            "rope_theta": 1000000000.0, "sliding_window": None
        }, "vision_config": {
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 8, "image_size": 16, "patch_size": 8, "rope_theta": 10000.0
        }
    },
    "gemma3_4b": {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 310,
        "eoi_token_index": 311, "image_token_index": 312, "mm_tokens_per_image": 4, "eos_token_id": [2, 3],
        "text_config": {
            "hidden_size": 64, "intermediate_size": 96, "model_type": "gemma3_text", "num_hidden_layers": 7,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 16
        }, "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8
        }
    },
}
