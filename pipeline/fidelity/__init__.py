"""How true a finished clip is to the still and to the prompt that it was made of."""
