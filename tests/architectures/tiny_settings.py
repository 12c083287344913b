"""Which fields make a config tiny: by their names, and by model where that is not enough."""

from typing import Any

__all__ = ["SETTINGS", "SIZES", "VOCABULARY"]

VOCABULARY = 40
_BY_SIZE = {
    16: """
        attention_hidden_size conv_dim_base d_model decoder_hidden_size dim emb_dim embed_dim
        embedding_size encoder_hidden_size hidden_dim hidden_size hidden_size_per_layer_input
        image_size lru_width model_dim n_embd output_hidden_size proj_dim projection_dim
        rotary_dim width word_embed_proj_dim
    """,
    24: """
        d_ff d_inner dff decoder_ffn_dim dense_intermediate_size encoder_ffn_dim
        expert_intermediate_size feed_forward_hidden_size ffn_dim ffn_hidden_size inner_dim
        intermediate_size intermediate_size_mlp mlp_dim moe_ffn_hidden_size
        moe_intermediate_size n_inner shared_expert_intermediate_size shared_intermediate_size
    """,
    2: """
        decoder_attention_heads decoder_layers depth encoder_attention_heads encoder_layers
        eos_token_id forced_eos_token_id index_n_heads linear_num_key_heads
        linear_num_value_heads mamba_n_heads moe_k moe_top_k moe_topk n_head n_heads n_layer
        n_layers num_attention_heads num_decoder_attention_heads num_decoder_layers
        num_encoder_attention_heads num_encoder_layers num_experts_per_tok num_experts_per_token
        num_experts_per_topk num_heads num_hidden_layers num_layers num_selected_experts
    """,
    1: """
        bos_token_id first_k_dense_replace multi_query_group_num n_group n_shared_experts
        num_key_value_heads num_kv_heads num_shared_experts topk_group
    """,
    8: """
        attention_chunk_size attention_head_dim attention_head_size attention_window_size
        chunk_size d_kv global_head_dim head_dim index_head_dim kv_lora_rank linear_key_head_dim
        linear_value_head_dim local_attention mamba_d_head q_lora_rank qk_nope_head_dim
        sliding_window v_head_dim window_size
    """,
    4: """
        index_topk mamba_d_state moe_num_experts n_routed_experts num_experts num_local_experts
        num_routed_experts patch_size qk_rope_head_dim ssm_state_size state_size time_step_rank
    """,
    VOCABULARY: """
        decoder_vocab_size src_vocab_size tgt_vocab_size vocab_size vocab_size_or_config
        vocab_size_per_layer_input
    """,
    64: """
        max_decoder_position_embeddings max_encoder_position_embeddings max_position_embeddings
        max_seq_len max_seqlen max_sequence_length max_source_positions max_target_positions
        n_ctx n_positions seq_length
    """,
    0: """
        decoder_start_token_id num_nextn_predict_layers pad_token_id
    """,
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
"""Sizes by the names of fields: widths of 16, two heads of 8, two layers, four experts."""

_BY_MODEL: dict[str, dict[str, Any]] = {
    "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots1 glm4_moe_lite glm_moe_dsa "
    "minicpm3 youtu mistral4 esmc dots3_note diffllama": {  # their attention has no groups
        "num_key_value_heads": 2
    },
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds_dim": (8, 8), "axial_pos_shape": (8, 8), "is_decoder": True},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "nemotron ministral hunyuan_v1_dense hunyuan_v1_moe": {"head_dim": 8},
    "lilt": {"channel_shrink_ratio": 2},
    "mamba2": {"expand": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_n_groups": 1},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {
        "enable_pronunciation": False,
        "enable_shape": False,
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
    },
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 2},
    "esm": {"mask_token_id": 3, "position_embedding_type": "absolute"},
    "longformer": {"attention_window": 8},
    "led": {"attention_window": 8, "max_encoder_position_embeddings": 64},
    "convnext convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    "swin swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pvt": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "image_size": 32,
    },
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "levit": {
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "mobilevit": {
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
        "image_size": 64,
        "num_attention_heads": 2,
    },
    "focalnet": {
        "embed_dim": 8,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "hidden_sizes": [8, 16],
    },
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 1, 1]},
    "efficientnet": {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2},
    "van": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32},
    "vit_msn": {},
    "beit": {"use_relative_position_bias": True},
    "wav2vec2 hubert wavlm unispeech unispeech-sat data2vec-audio sew sew-d wav2vec2-conformer": {
        "conv_dim": (8, 8),
        "conv_stride": (4, 4),
        "conv_kernel": (4, 4),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
    },
}
SETTINGS = {model: values for models, values in _BY_MODEL.items() for model in models.split()}
"""Fields of some models, by their type."""
