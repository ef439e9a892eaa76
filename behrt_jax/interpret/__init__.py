"""Attribution of predictions to tokens, and counterfactual histories."""
